"""Whether somebody watches: where a progress bar may be redrawn, and where plain lines belong."""

from __future__ import annotations

import os
from typing import Any


def is_live(stream: Any) -> bool:
    """Whether `stream` is a terminal that may get colours and lines that are drawn over.

    False for a pipe, a file, a closed or missing stream, ``TERM=dumb`` (or none), and where the environment says
    ``NO_COLOR`` or ``CI``: what is written there is read later, by people and by programs.
    """
    try:
        if not stream.isatty():
            return False
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    return not os.environ.get("NO_COLOR") and os.environ.get("CI", "").lower() in ("", "0", "false")
