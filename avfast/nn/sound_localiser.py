"""Which place of a picture, and which picture of a clip, a sound comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import _check
from ..ops._counter import Uniforms, combine, content_key
from ..ops._distributed import gather_with_gradient, require_even, world
from .encoder import Encoder

RULES = ("top1", "top10", "middle", "random")
BEST = 10


class SoundLocaliser(nn.Module):
    r"""Cosines between a sound and every place of a picture, learnt from pairs alone.

    With unit vectors f_j(p) of place p in picture j and a_i of sound i, a batch of pairs is contrasted in both
    directions by its best places:

    .. math:: s_{ij} = \max_p \langle f_j(p), a_i \rangle, \quad
              L = \tfrac12 [\mathrm{CE}(s / \tau, \mathrm{diag}) + \mathrm{CE}(s^T / \tau, \mathrm{diag})]

    This is the multiple-instance loss of Mo and Morgado 2022, "Localizing visual sounds the easy way" (EZ-VSL), section
    3, without its object prior. Sound2Scene (Sung-Bin et al. 2023) picks the frame of a clip with such a network. The
    product of all pairs and places is held for the backward pass: ``4 B^2 h w`` bytes, 13 MB at B = 256 and 7 x 7.

    Args:
        visual: encoder of pictures with a map, not a vector.
        audio: encoder of spectrograms; its pooled output is read.
        dim: D of the common space.
        temperature: tau.

    Raises:
        ValueError: ``dim`` below 1, or a temperature that is not positive.

    >>> visual, audio = Encoder(nn.Conv2d(3, 8, 4, 4), 8), Encoder(nn.Conv2d(1, 8, 4, 4), 8)
    >>> localiser = SoundLocaliser(visual, audio, dim=16)
    >>> frames, sound = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 16, 40)
    >>> loss, scores = localiser(frames, sound)
    >>> loss.shape, scores.shape, localiser.maps(frames, sound).shape
    (torch.Size([]), torch.Size([2, 2]), torch.Size([2, 8, 8]))
    """

    def __init__(self, visual: Encoder, audio: Encoder, dim: int = 512, temperature: float = 0.07) -> None:
        super().__init__()
        if dim < 1:
            _check.fail("SoundLocaliser", "dim", "a positive number", dim)
        _check.number("SoundLocaliser", "temperature", temperature, above=0.0)
        self.visual, self.audio, self.temperature = visual, audio, float(temperature)
        self.visual_head = nn.Conv2d(visual.channels, dim, 1)
        self.audio_head = nn.Linear(audio.channels, dim)

    def places(self, frames: Tensor) -> Tensor:
        """Unit vectors ``[B, D, h, w]`` of the places of pictures ``[B, 3, H, W]``, at least float32."""
        found = self.visual(frames)
        if found.dim() != 4:
            _check.fail("SoundLocaliser", "visual", "an encoder with a map [B, C, h, w]", list(found.shape))
        return _unit(self.visual_head(found))

    def sounds(self, spectrogram: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of sounds ``[B, 1, F, T]``, at least float32."""
        return _unit(self.audio_head(self.audio.pooled(spectrogram)))

    def maps(self, frames: Tensor, spectrogram: Tensor) -> Tensor:
        """Cosine of each picture's places with its own sound, ``[B, h, w]`` in [-1, 1]."""
        _pairs("maps", frames, spectrogram, 4)
        return _cosines("bdhw,bd->bhw", self.places(frames), self.sounds(spectrogram))

    def scores(self, frames: Tensor, spectrogram: Tensor) -> Tensor:
        """s ``[B, B]``: sound i (row) with the best place of picture j (column)."""
        _pairs("scores", frames, spectrogram, 4)
        places = self.places(frames).flatten(2)  # [B, D, P]
        return _cosines("jdp,id->ijp", places, self.sounds(spectrogram)).amax(dim=2)

    def forward(self, frames: Tensor, spectrogram: Tensor, *, gather: bool = False) -> tuple[Tensor, Tensor]:
        """The loss of B pairs, and their scores ``[B, B]``.

        With ``gather`` a pair is contrasted with those of all processes, which must bring as many; the loss is that of
        the own pairs, so that the average over processes, which DDP takes, is that of all.
        """
        if not gather or world()[1] == 1:
            scores = self.scores(frames, spectrogram)
            return self._contrast(scores, scores.mT, 0), scores
        _pairs("forward", frames, spectrogram, 4)
        require_even("SoundLocaliser.forward", "frames", frames)
        places, sounds = self.places(frames).flatten(2), self.sounds(spectrogram)  # [B, D, P], [B, D]
        first, all_places = gather_with_gradient(places)
        _, all_sounds = gather_with_gradient(sounds)
        by_sound = _cosines("jdp,id->ijp", all_places, sounds).amax(dim=2)  # own sounds, all pictures
        by_picture = _cosines("jdp,id->jip", places, all_sounds).amax(dim=2)  # own pictures, all sounds
        return self._contrast(by_sound, by_picture, first), by_sound[:, first : first + len(frames)]

    def _contrast(self, by_sound: Tensor, by_picture: Tensor, first: int) -> Tensor:
        """Of B own pairs against N, the own ones from column ``first`` on; both ``[B, N]``."""
        own = torch.arange(first, first + len(by_sound), device=by_sound.device)
        losses = (F.cross_entropy(scores / self.temperature, own) for scores in (by_sound, by_picture))
        return sum(losses) / 2

    def frame_scores(self, frames: Tensor, spectrogram: Tensor) -> Tensor:
        """How well each of frames ``[B, T, 3, H, W]`` shows what is heard: its best place's cosine, ``[B, T]``."""
        _pairs("frame_scores", frames, spectrogram, 5)
        places = self.places(frames.flatten(0, 1)).flatten(2).unflatten(0, frames.shape[:2])  # [B, T, D, P]
        return _cosines("btdp,bd->btp", places, self.sounds(spectrogram)).amax(dim=2)

    def extra_repr(self) -> str:
        return f"dim={self.audio_head.out_features}, temperature={self.temperature:g}"


def select_frames(
    scores: Tensor,
    rule: str = "top1",
    *,
    generator: torch.Generator | int = 0,
    ids: Tensor | Sequence[str] | None = None,
    step: int = 0,
) -> Tensor:
    """One frame per clip, int64 ``[N]``, from scores ``[N, T]``.

    A draw depends on the seed, the clip's id and the step, and on nothing else: not on which clips are beside it or in
    which order they come.

    Args:
        scores: of every frame, such as :meth:`SoundLocaliser.frame_scores` gives; of equal ones the first counts.
        rule: ``"top1"`` the best frame, ``"top10"`` any of the ten best, ``"middle"`` that in the middle of the clip,
            ``"random"`` any.
        generator: of the two random rules: a seed, or a generator that one seed is taken from.
        ids: of the clips, for the two random rules: content ids, or their numbers int64 ``[N]`` as batches hold them.
        step: an epoch or iteration, for another draw.

    Raises:
        TypeError, ValueError: unknown rule, scores that are not ``[N, T >= 1]`` or are NaN, or no ids where needed.

    >>> scores = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]])
    >>> select_frames(scores).tolist(), select_frames(scores, "middle").tolist()
    ([1, 0], [1, 1])
    >>> drawn = select_frames(scores, "random", ids=["a", "b"])
    >>> torch.equal(select_frames(scores.flip(0), "random", ids=["b", "a"]), drawn.flip(0))
    True
    """
    name = "select_frames"
    _check.one_of(name, "rule", rule, RULES)
    _check.floating(name, "scores", scores)
    if scores.dim() != 2 or not scores.shape[1]:
        _check.fail(name, "scores", "[N, T >= 1]", list(scores.shape))
    if bool(scores.isnan().any()):
        _check.fail(name, "scores", "numbers", "NaN")
    n, frames = scores.shape
    if rule == "middle":
        return torch.full((n,), frames // 2, dtype=torch.int64, device=scores.device)
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    if rule == "top1":
        return order[:, 0]
    choices = min(BEST, frames) if rule == "top10" else frames
    keys = combine(_seed(name, generator), _keys(name, ids, n, rule), step)
    drawn = torch.from_numpy((Uniforms(keys).draw() * choices).astype(np.int64)).to(scores.device)
    return order.gather(1, drawn[:, None])[:, 0] if rule == "top10" else drawn


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def _cosines(equation: str, places: Tensor, sounds: Tensor) -> Tensor:
    # Half precision has too few digits for cosines that a small temperature magnifies.
    with torch.autocast(places.device.type, enabled=False):
        return torch.einsum(equation, places, sounds)


def _pairs(method: str, frames: Tensor, spectrogram: Tensor, dims: int) -> None:
    name, shape = f"SoundLocaliser.{method}", "[B, T, 3, H, W]" if dims == 5 else "[B, 3, H, W]"
    if frames.dim() != dims:
        _check.fail(name, "frames", shape, list(frames.shape))
    if len(frames) != len(spectrogram) or not len(frames):
        _check.fail(name, "spectrogram", f"as many as frames and at least one, {len(frames)}", len(spectrogram))


def _seed(name: str, generator: torch.Generator | int) -> int:
    if isinstance(generator, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    if isinstance(generator, bool) or not isinstance(generator, int):
        _check.fail(name, "generator", "a torch.Generator or an integer seed", type(generator).__name__, TypeError)
    return generator


def _keys(name: str, ids: Tensor | Sequence[str] | None, n: int, rule: str) -> np.ndarray:
    if ids is None or len(ids) != n:
        _check.fail(name, "ids", f"the ids of {n} clips, as rule '{rule}' needs", None if ids is None else len(ids))
    if isinstance(ids, Tensor):
        if ids.dtype != torch.int64 or ids.dim() != 1:
            _check.fail(name, "ids", "an int64 tensor [N]", f"{ids.dtype} {list(ids.shape)}", TypeError)
        return ids.cpu().numpy()
    return np.array([content_key(id) for id in ids], dtype=np.int64)
