"""What ``avfast generate`` is to draw, and what it does to sounds and latents before."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from avfast.errors import ConfigError

HALF = 0.5
"""Share of the picture where none is said."""


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Options of the command.

    Attributes:
        count: pictures of each sound.
        seed: of the noise, the same for every sound.
        gain: multiplies the waveform before the front-end.
        mix: add all sounds to one scene.
        picture: mixed into every latent.
        share: of the picture, in [0, 1]; a half where there is a picture and no share.

    Raises:
        ConfigError: a value outside its range, named by its option.

    >>> print(GenerateOptions(gain=0.5, picture=Path("forest.png")))
    seed 0, gain 0.5, 50% forest.png
    """

    count: int = 8
    seed: int = 0
    gain: float = 1.0
    mix: bool = False
    picture: Path | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1000:
            raise ConfigError(f"--count: expected 1 to 1000, got {self.count}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed: expected 0 or more, below 2^63, got {self.seed}")
        if not 0 < self.gain < math.inf:
            raise ConfigError(f"--gain: expected a finite number above 0, got {self.gain}")
        if self.share is not None and self.picture is None:
            raise ConfigError("--share: is of the picture of --with-image, which is not given")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ConfigError(f"--share: expected a number in [0, 1], got {self.share}")
        if self.share is None and self.picture is not None:
            object.__setattr__(self, "share", HALF)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "picture": None if self.picture is None else str(self.picture)}

    def __str__(self) -> str:
        how = [f"seed {self.seed}"]
        if self.gain != 1:
            how.append(f"gain {self.gain:g}")
        if self.picture is not None:
            how.append(f"{self.share:.0%} {self.picture.name}")
        return ", ".join(how)
