"""The loop around every system: configuration, plan, training on `accelerate`, checkpoints, evaluation and
report."""

from __future__ import annotations
