"""Small sets made on the spot from pictures and sounds that are free to use: clips with sound, and scenes."""

from __future__ import annotations

from avfast.data.demo.clips import honesty_line, make_demo_clips
from avfast.data.demo.cutaways import make_cutaway_clips
from avfast.data.demo.labelled import make_labelled_clips
from avfast.data.demo.scenes import make_scenes

__all__ = ["honesty_line", "make_cutaway_clips", "make_demo_clips", "make_labelled_clips", "make_scenes"]
