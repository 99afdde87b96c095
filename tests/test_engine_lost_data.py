"""Data that vanish, break or change under a run: it stops with its state saved, or counts them once."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
from engine_fixtures import weights

for library in ("accelerate", "av"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from fault_fixtures import (  # noqa: E402, F401
    STEPS,
    assert_same_weights,
    before_step,
    clip_set,
    fit,
    make,
    rows_of,
    saved_step,
    toys_as_recipes,
    twenty_clips,
)

from avfast.data import ClipSource  # noqa: E402
from avfast.engine import breakage  # noqa: E402
from avfast.engine.sources import evaluation_loader  # noqa: E402
from avfast.engine.validate import Validator  # noqa: E402
from avfast.errors import AvfastError, DataError, RunFault  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "toy_recipe")


@pytest.mark.parametrize(("policy", "workers"), [("skip", 0), ("resample", 0), ("raise", 0), ("skip", 2)])
def test_a_data_folder_that_vanishes_stops_the_run_and_is_waited_for(tmp_path, clips, policy, workers):
    whole = make(tmp_path / "whole", clip_set(clips), recipe="clips")
    fit(whole)
    folder = shutil.copytree(clips, tmp_path / "mounted")
    trainer = make(tmp_path / "run", clip_set(folder, policy), recipe="clips", workers=workers)
    before_step(trainer, 4, lambda: folder.rename(tmp_path / "elsewhere"))
    with pytest.raises(AvfastError) as caught:
        fit(trainer)
    message, last = str(caught.value), tmp_path / "run" / "checkpoints" / "last.pt"
    assert str(folder) in message and "\n" not in message
    if policy == "skip":
        assert message.startswith(f"the data folder '{folder}' does not exist any more: the last is ")
        assert isinstance(caught.value, RunFault) and caught.value.code == 3
    assert f"in '{last}'; --resume auto continues" in message
    step = saved_step(tmp_path / "run")
    assert f"state saved at step {step} of {STEPS}" in message and 4 <= step <= 4 + 2 * workers
    (fault,) = rows_of(tmp_path / "run", "fault")
    assert fault["cause"] == "data" and fault["step"] == step and str(folder) in fault["text"]
    (tmp_path / "elsewhere").rename(folder)
    again = make(tmp_path / "run", clip_set(folder, policy), recipe="clips", workers=workers, resume=True)
    result = fit(again)
    assert_same_weights(again, weights(whole))
    assert result.errors == {}  # nothing of the batch that stopped it was counted


def test_a_folder_that_vanishes_before_a_look_at_the_validation_split(tmp_path, clips):
    folder = shutil.copytree(clips, tmp_path / "clips")
    trainer = make(tmp_path / "run", clip_set(folder), recipe="clips", eval_every=4, save_every=100)
    trainer.validator = Validator(evaluation_loader(clip_set(folder), 4))
    before_step(trainer, 4, lambda: folder.rename(tmp_path / "away"))
    with pytest.raises(RunFault, match=rf"the data folder '{folder}' does not exist any more: .*saved at step 4 of 12"):
        fit(trainer)
    (tmp_path / "away").rename(folder)
    again = make(tmp_path / "run", clip_set(folder), recipe="clips", eval_every=4, resume=True)
    again.validator = Validator(evaluation_loader(clip_set(folder), 4))
    fit(again)
    assert [row["step"] for row in rows_of(tmp_path / "run", "val")] == [4, 8, 12]


def test_an_empty_folder_is_a_disk_that_is_not_mounted(tmp_path):
    watch = breakage.Breakage(tmp_path, "clips")
    error = {"path": f"{tmp_path}/7.mp4", "detail": "no such file"}
    with pytest.raises(RunFault, match=r"is empty \(unmounted\?\).*the last is .*7\.mp4, which no such file"):
        watch.note(0, [error])


def test_data_that_can_hardly_be_read_stop_the_run(tmp_path):
    (tmp_path / "one.mp4").touch()
    error = {"path": "/data/7.mp4", "detail": "cannot be read (Input/output error)"}
    watch = breakage.Breakage(tmp_path, "clips")
    for _ in range(50):
        watch.note(0, 2 * [error])
        watch.note(0, 2 * [error])
        watch.note(9, [])
    with pytest.raises(RunFault, match="no clips of '.*' can be read any more: 3 batches in a row.*Input/output error"):
        for _ in range(3):
            watch.note(0, [error])
    watch = breakage.Breakage(None, "images")
    for _ in range(100):
        watch.note(4, 4 * [error])  # half of them: much, and no more than is allowed
    with pytest.raises(RunFault, match=r"1\d\d of the last 2\d\d images could not be read"):
        for _ in range(100):
            watch.note(3, 5 * [error])


def test_what_breaks_in_mid_epoch_is_counted_once_over_a_resume(tmp_path, clips):
    """Two passes over 20 clips of which two break in the first: an interrupted run counts what the other counts."""

    def run(name, stop_at=None):
        folder, out = shutil.copytree(clips, tmp_path / name), tmp_path / f"{name}-run"
        source = ClipSource.open(folder)
        trainer = make(out, clip_set(folder, source=source), recipe="clips", steps=10)

        def damage():
            (folder / "003.mp4").unlink()
            os.truncate(folder / "004.mp4", 700)

        before_step(trainer, 2, damage)
        if stop_at:
            before_step(trainer, stop_at, lambda: folder.rename(tmp_path / "away"))
            with pytest.raises(RunFault):
                fit(trainer)
            (tmp_path / "away").rename(folder)
            trainer = make(out, clip_set(folder, source=source), recipe="clips", steps=10, resume=True)
        result = fit(trainer)
        assert rows_of(out, "train")[-1]["broken"] == sum(result.errors.values())
        counts = Counter()
        for key, count in result.errors.items():  # a list that is read anew knows the damaged file as it is now
            counts[os.path.basename(key).split(":")[0]] += count
        return counts

    plain, resumed = run("plain"), run("resumed", stop_at=6)
    assert plain == resumed and plain["003.mp4"] in (1, 2) and plain["004.mp4"] in (1, 2)


def test_a_broken_file_with_raise_ends_with_the_state_saved(tmp_path, clips):
    folder = shutil.copytree(clips, tmp_path / "clips")
    trainer = make(tmp_path / "run", clip_set(folder, "raise"), recipe="clips", save_every=100)
    before_step(trainer, 2, lambda: os.truncate(folder / "007.mp4", 300))
    with pytest.raises(DataError, match=r"007\.mp4: is not the file any more.*on_error.*state saved at step [2-5] "):
        fit(trainer)
    again = make(tmp_path / "run", clip_set(folder, "skip"), recipe="clips", resume=True, data={"on_error": "skip"})
    assert fit(again).step == STEPS
