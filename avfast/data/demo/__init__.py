"""A small audio-visual set made on the spot from pictures and sounds that are free to use."""

from __future__ import annotations

from avfast.data.demo.clips import honesty_line, make_demo_clips

__all__ = ["honesty_line", "make_demo_clips"]
