"""The check of many steps, small; and that it finds what it is there to find."""

from __future__ import annotations

import mmap
import os

import pytest

for library in ("accelerate", "av"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.benches.soak import faults, steps, toy  # noqa: E402


def test_a_few_hundred_steps_leave_nothing_behind():
    (row,) = steps.check(steps.SMALL, 0, lambda line: None)
    assert row.failures == [] and row.times == steps.SMALL, row.failures
    assert row.numbers["handles more"] <= 0 and row.numbers["threads more"] <= 0


def test_what_leaks_is_found(monkeypatch):
    """8 MiB and a handle in every third step."""
    kept, build = [], toy.make_trainer

    def leaking(*arguments, **options):
        trainer = build(*arguments, **options)

        def leak(step):
            if step % 3 == 0:
                # Pages of their own: a heap that other tests have used may hand out what it kept.
                pages = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                pages.write(b"x" * len(pages))
                kept.append((pages, open(os.devnull)))

        toy.in_step(trainer, leak)
        return trainer

    monkeypatch.setattr(steps, "make_trainer", leaking)
    (row,) = steps.check(60, 0, lambda line: None)
    for _, handle in kept:
        handle.close()
    assert any("memory grew by" in text for text in row.failures)
    assert any(text.startswith("handles: ") for text in row.failures)


def test_faults_at_random_steps():
    rows = faults.check(faults.SMALL, 1, lambda line: None)
    assert len(rows) == len(faults.FAULTS) and [text for row in rows for text in row.failures] == []
