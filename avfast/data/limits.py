"""What one file may cost: a header of a few bytes can ask for more memory than any machine has.

=========================== ============ ======================================================================
environment variable        default      what is refused, with cause ``too-large``
=========================== ============ ======================================================================
``AVFAST_MAX_PIXELS``       89,478,485   a picture of more pixels, before its pixels are decoded
``AVFAST_MAX_FILE_BYTES``   4 GiB        more pictures and sound than this out of one file, while it is decoded
=========================== ============ ======================================================================

The first is Pillow's own line, a quarter of a GiB in RGB. Both are read at every file, so they may be set in a running
process, and reach the workers of a loader.
"""

from __future__ import annotations

import math

from avfast import env
from avfast.errors import ConfigError

# Sound this far above full scale is not sound: what it was computed from overflowed or was read as another type.
LOUDEST = 1000.0
# Twice the highest rate of any recorder. A resampler's filter grows with the rate: at 800 MHz, which a flipped bit in a
# header can ask for, it takes 1.6 GiB and 15 seconds.
FASTEST = 1_536_000


class Refused(Exception):
    """What a file holds is refused: ``cause`` (one word) and ``detail`` (a clause). Whoever knows the file's name makes
    an :class:`~avfast.errors.UnreadableFile` of it."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause, self.detail = cause, detail


def max_pixels() -> int:
    """The most pixels of one picture, ``AVFAST_MAX_PIXELS``.

    Raises:
        ConfigError: the variable is not a positive whole number.

    >>> max_pixels()
    89478485
    """
    return _whole("AVFAST_MAX_PIXELS")


def check_pixels(width: int, height: int, what: str = "shows pictures") -> None:
    """Refuse pictures of more than :func:`max_pixels`.

    Raises:
        Refused: with cause ``too-large``.

    >>> check_pixels(60_000, 60_000)
    Traceback (most recent call last):
    ...
    avfast.data.limits.Refused: shows pictures of 60000 x 60000, more than 89478485 pixels; AVFAST_MAX_PIXELS raises it
    """
    if width * height > (most := max_pixels()):
        detail = f"{what} of {width} x {height}, more than {most} pixels; AVFAST_MAX_PIXELS raises it"
        raise Refused("too-large", detail)


def max_file_bytes() -> int:
    """The most bytes of pictures and sound out of one file, ``AVFAST_MAX_FILE_BYTES``.

    Raises:
        ConfigError: the variable is not a positive whole number.

    >>> max_file_bytes()
    4294967296
    """
    return _whole("AVFAST_MAX_FILE_BYTES")


def check_bytes(count: float, most: int) -> None:
    """Refuse a file that has given more bytes of pictures and sound than ``most``, its :func:`max_file_bytes`.

    Raises:
        Refused: with cause ``too-large``.
    """
    if count > most:
        detail = f"decodes to more than {most} bytes of pictures and sound; AVFAST_MAX_FILE_BYTES raises it"
        raise Refused("too-large", detail)


def check_rate(rate: int) -> None:
    """Refuse sound of more than :data:`FASTEST` samples per second.

    Raises:
        Refused: with cause ``too-large``.

    >>> check_rate(822_091_584)
    Traceback (most recent call last):
    ...
    avfast.data.limits.Refused: holds sound of 822091584 samples per second, more than 1536000
    """
    if rate > FASTEST:
        raise Refused("too-large", f"holds sound of {rate} samples per second, more than {FASTEST}")


def check_peak(peak: float) -> None:
    """Refuse sound whose largest sample is ``peak``.

    Raises:
        Refused: it is not finite, or more than :data:`LOUDEST`.
    """
    if not peak < math.inf:  # which NaN is not either
        raise Refused("unreadable", "holds samples that are not finite numbers")
    if peak > LOUDEST:
        raise Refused("unreadable", f"holds samples of more than {LOUDEST:g} times full scale")


def _whole(name: str) -> int:
    given = env.text(name)
    try:
        value = int(given)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{name}: expected a positive whole number, got '{given}'")
    return value
