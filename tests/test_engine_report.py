"""``avfast report``: a report and its pictures again from the folder of a run, whatever state that is in."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from report_fixtures import HONESTY, files_of, rebuilds_itself, small_run, train_row

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from avfast.cli import main  # noqa: E402
from avfast.engine import figures, rebuild  # noqa: E402
from avfast.engine.closing import closing_lines  # noqa: E402
from avfast.engine.drawing import Album, Drawing, Kept, kept_drawings  # noqa: E402
from avfast.engine.journal import Journal  # noqa: E402
from avfast.engine.record import read_run, write_json, write_stopped  # noqa: E402
from avfast.engine.scene.localise import localisation_figure  # noqa: E402
from avfast.engine.stages import begin_stages  # noqa: E402
from avfast.errors import UnreadableFile  # noqa: E402
from avfast.evaluate import Score  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Drawing takes a hundred times longer than the rest; tests that look at pictures ask for `drawn`."""
    if "drawn" in request.fixturenames:
        return

    def paint(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def curves(path, main, control, bounds):
        return paint(path, repr((len(main), len(control), bounds))) if main else None

    monkeypatch.setattr("avfast.engine.rebuild.figures.curves", curves)
    monkeypatch.setattr(Drawing, "draw", lambda self, path: paint(path, self.kind))


@pytest.fixture
def drawn():
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with its report. Tests must not change it."""
    folder = small_run(tmp_path_factory.mktemp("runs") / "run")
    rebuild.rebuild(folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def report(*words, capsys, status: int = 0) -> str:
    assert main(["report", *map(str, words)]) == status
    said = capsys.readouterr()
    return said.out if status < 2 else said.err


# ------------------------------------------------------------------------------------------- whole runs


@pytest.mark.usefixtures("drawn")
def test_report_and_pictures_come_back_byte_for_byte(finished, tmp_path, monkeypatch):
    rebuilds_itself(finished, tmp_path / "copy", monkeypatch)


def test_what_the_report_and_the_last_lines_say(finished, capsys, tmp_path):
    said = report(finished, "--out", tmp_path, capsys=capsys)
    text = (tmp_path / "report.md").read_text()
    assert text.splitlines()[0] == HONESTY and "finished at step 20 of 20" in text
    for words in (
        "0.500 [0.400, 0.600]", "0.100 (0.000 to 0.200)", "a second training of 20 steps with wrong pairs",
        "`a.mp4: torn` (2)", "a note", "recipe  av-align", "machine: a test", "memory at most: 420 MiB", "with words",
        "![Contact sheet](figures/contact_sheet.png)", "- `figures/data/similarity.npz`",
    ):  # fmt: skip
        assert words in text, words
    assert "gone.png" not in text, "a picture that nothing drew is not shown"
    for words in (
        "av-align: finished at step 20 of 20; evaluated with the weights of step 20, the best on the validation split",
        "R@1 audio->video class-level: 0.500 [chance 0.100 (0.000 to 0.200), untrained 0.500, shuffled not run; n=16]",
        "time: training 0:12", "1 files, 2 times", f"  {finished / 'metrics.jsonl'}",
        f"AutoModel.from_pretrained(FOLDER)`: `{finished}/export/audio`", f"{finished}/export/head/model.safetensors",
        f"avfast report {finished}",
    ):  # fmt: skip
        assert words in said, words
    assert said.splitlines()[-1] == f"read '{tmp_path / 'report.md'}' first"
    assert "go on where it stopped" not in said


def test_no_data_library_is_needed(run):
    """Only NumPy, torch and matplotlib: a report can be rebuilt where nothing can be trained."""
    code = (
        "import sys\n"
        "for name in ('av', 'accelerate', 'transformers', 'sklearn', 'kornia', 'jsonargparse', 'PIL.Image'):\n"
        "    if name != 'PIL.Image': sys.modules[name] = None\n"
        "from avfast.cli import main\n"
        f"sys.exit(main(['report', {str(run)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "read '" in done.stdout, done.stderr


@pytest.mark.usefixtures("drawn")
def test_a_report_can_go_elsewhere_and_leaves_the_run_alone(run, tmp_path, capsys):
    before = files_of(run)
    report(run, "--out", tmp_path / "there" / "own.md", capsys=capsys)
    there = files_of(tmp_path / "there")
    assert files_of(run) == before and there["own.md"] == before["report.md"]
    assert there["curves.png"] == before["curves.png"] and there["figures/similarity.png"] == before[
        "figures/similarity.png"]  # fmt: skip
    (tmp_path / "file").write_text("")
    assert "expected a folder or a file ending in .md" in report(
        run, "--out", tmp_path / "file", capsys=capsys, status=2
    )


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_run_that_cannot_be_written_says_the_way_out(run, capsys, monkeypatch, code):
    def refuse(figure, path):
        raise OSError(code, "Read-only file system", str(path))

    monkeypatch.setattr(figures, "save_figure", refuse)
    said = report(run, capsys=capsys, status=2)
    assert said.startswith("error: cannot write to '") and "choose another place with --out" in said
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("drawn")
def test_without_matplotlib_the_pictures_that_are_there_stay(run, capsys, monkeypatch):
    before = files_of(run)
    monkeypatch.setattr(figures, "matplotlib_figure", lambda: None)
    report(run, capsys=capsys)
    assert files_of(run) == before
    for path in run.rglob("*.png"):
        path.unlink()
    report(run, capsys=capsys)
    text = (run / "report.md").read_text()
    assert "no pictures: matplotlib is not installed" in text and "![" not in text


# ------------------------------------------------------------------------------------------- runs without an end


def test_a_run_that_is_going_on_or_was_killed_shows_its_curves(tmp_path, capsys):
    run = small_run(tmp_path / "run", results=False)
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"kind": "train", "st')  # the kill
    said = report(run, capsys=capsys)
    text = (run / "report.md").read_text()
    for shown in (said, text):
        assert "no end on record: still running, or killed; the log ends at step 20 of 20" in shown
        assert "go on where it stopped: `avfast pretrain --recipe av-align --data d --out o --resume auto`" in shown
    assert "No scores: the run has not come to its evaluation." in text and "Damaged" not in text
    assert "Best validation loss so far: 1.500, at step 20." in text and (run / "curves.png").is_file()
    assert list(read_run(run).pictures) == [] and "![Curves](curves.png)" in text


def test_a_run_that_was_stopped_says_by_what(tmp_path, capsys):
    run = small_run(tmp_path / "run", results=False)
    write_stopped(run, "SIGTERM in its control")
    assert "av-align: stopped at step 20 of 20 by SIGTERM in its control" in report(run, capsys=capsys)
    write_stopped(run, "an error (the loss is nan at step 7)")
    assert "by an error (the loss is nan at step 7)" in report(run, capsys=capsys)


def test_a_run_that_has_only_begun_has_a_report_without_pictures(tmp_path, capsys):
    run = small_run(tmp_path / "run", results=False)
    for log in run.rglob("metrics.jsonl"):
        log.write_text("")
    report(run, capsys=capsys)
    assert "no pictures: there is nothing to draw" in (run / "report.md").read_text()


def test_scores_of_an_earlier_step_are_called_that(run, capsys):
    journal = Journal(run / "metrics.jsonl", resume_step=20)
    journal.write("train", **train_row(25, 0.5))
    report(run, capsys=capsys)
    text = (run / "report.md").read_text()
    assert "the training went on to step 25 after the evaluation at step 20" in text and "0.500 [0.400" in text


def test_warnings_of_the_log_stand_in_the_report_and_at_the_end(tmp_path, capsys):
    run = small_run(tmp_path / "run")
    journal = Journal(run / "metrics.jsonl")
    bad = {"audio": "embeddings nearly identical (mean cosine 0.990, std 0.10)"}
    slow = {"loader-bound": "80% of the time waits for data; try data.workers=2"}
    journal.write("fault", step=7, cause="nonfinite", loss="nan")
    journal.write("fault", step=9, cause="nonfinite", loss="nan")
    for step, warnings in ((5, {}), (10, bad), (15, bad | slow), (20, bad)):
        journal.write("train", **train_row(step, 1.0), **({"warnings": warnings} if warnings else {}))
    said, text = report(run, capsys=capsys), (run / "report.md").read_text()
    first = "steps 10 to 20, the last ones: audio embeddings nearly identical (mean cosine 0.990, std 0.10)"
    second = "step 15: loader-bound: 80% of the time waits for data; try data.workers=2"
    assert f"warning: {first}" in said and f"warning: {second}" in said
    assert f"- warning: {first}" in text and f"- warning: {second}" in text
    third = "warning: 2 steps: dropped, something in them was not finite (the last at 7, 9)"
    assert third in said and third in text


# ------------------------------------------------------------------------------------------- older versions


def old(folder: Path) -> Path:
    """As version 0.1.0 of November left a run: no run.json, no kept pictures, scores and two steps in results.json."""
    small_run(folder, start=False, pictures=False)
    stored = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({k: stored[k] for k in ("step", "best_step", "scores")}))
    for log in folder.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        new = ("time", "grad_norm", "rss_mib", "warnings")
        log.write_text("".join(json.dumps({k: v for k, v in r.items() if k not in new}) + "\n" for r in rows))
    return folder


def test_a_run_of_an_older_version_keeps_its_report_and_gets_another(tmp_path, capsys):
    run = old(tmp_path / "run")
    (run / "report.md").write_text("as it was")
    (run / "curves.png").write_bytes(b"as it was")
    before = files_of(run)
    said = report(run, capsys=capsys)
    after = files_of(run)
    assert {k: after[k] for k in before} == before and set(after) - set(before) == {
        "rebuilt/report.md", "rebuilt/curves.png"}  # fmt: skip
    text = (run / "rebuilt" / "report.md").read_text()
    assert text.startswith("media of an unknown kind: the version of avfast that ran this did not keep it")
    for words in (
        "0.500 [0.400, 0.600]", "# av-align: report", "evaluated at step 20", "an older version of avfast ran this",
        "'report.md' of the version that ran it says more", "![Curves](curves.png)",
    ):  # fmt: skip
        assert words in text, words
    assert f"read '{run / 'rebuilt' / 'report.md'}' first" in said


def test_an_older_run_without_a_report_gets_one_in_its_place(tmp_path, capsys):
    run = old(tmp_path / "run")
    report(run, capsys=capsys)
    assert (run / "report.md").is_file() and not (run / "rebuilt").exists()


# ------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["run.json", "results.json", "config.json"])
@pytest.mark.parametrize("text", ["", '{"step": 2', "[]", '{"schema": 1, "scores": 3, "step": "x"}', "[" * 100_000])
def test_a_damaged_file_is_named_and_costs_only_what_it_held(run, capsys, name, text):
    (run / name).write_text(text)
    said = report(run, capsys=capsys, status=0 if name == "config.json" and text.startswith('{"schema') else 1)
    place = run / ("rebuilt" if name == "run.json" else ".")
    written = (place / "report.md").read_text()
    if name != "config.json":
        assert f"damaged: '{run / name}' is damaged (" in said and f"'{run / name}' is damaged (" in written
    assert "![Curves](curves.png)" in written
    assert ("0.500 [0.400, 0.600]" in written) == (name != "results.json")
    if name == "results.json":
        assert "No scores: their file is damaged." in written


def test_a_damaged_log_is_named_with_its_lines(run, capsys):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "\x00\x00", '{"kind": 3}', *lines[1:]]) + "\n")
    said = report(run, capsys=capsys, status=1)
    assert f"damaged: '{run / 'metrics.jsonl'}': cannot read line 2, 3" in said
    rows = [
        {"kind": "train", "step": 1, "loss": {}, "collapse": 3, "data_s": "x"},
        {"kind": "val", "step": 1, "loss": None},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(run, capsys=capsys)  # rows of a log that someone else wrote


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("must-not-exist"),)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", ["torn", "flipped", "empty", "pickle", "other kind", "elsewhere", "other values"])
def test_a_damaged_picture_is_left_out_by_name_and_runs_no_code(run, capsys, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("avfast.engine.rebuild.figures.curves", lambda *arguments: None)  # it takes the most time
    path = run / "figures" / "data" / "similarity.npz"
    data = path.read_bytes()
    kept = Kept.read(path)
    if kind == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        path.write_bytes(bytes([*data[:80], *(b ^ 0xFF for b in data[80:120]), *data[120:]]))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        np.savez(path, facts=np.array([Payload()], dtype=object))
    elif kind == "other kind":
        Kept(Drawing("os.system", {"command": "true"}), "x", "x.png", 1).write(path)
    elif kind == "elsewhere":
        Kept(kept.drawing, "x", "../../x.png", 1).write(path)
    else:
        Kept(Drawing("similarity", {"matrix": torch.zeros(2, 2, 2, 2)}), kept.title, kept.file, 1).write(path)
    (run / "figures" / "similarity.png").unlink()
    said = report(run, capsys=capsys, status=1)
    assert "similarity" in next(line for line in said.splitlines() if line.startswith("damaged: "))
    text = (run / "report.md").read_text()
    assert "![Contact sheet]" in text and "![Similarity" not in text
    assert not (tmp_path / "must-not-exist").exists() and not (tmp_path / "x.png").exists()


def test_a_picture_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    Kept(Drawing("similarity", {"matrix": torch.zeros(100, 100)}), "x", "x.png", 1).write(tmp_path / "x.npz")
    monkeypatch.setattr("avfast.engine.drawing.MOST_BYTES", 1000)
    with pytest.raises(UnreadableFile, match="holds more than"):
        Kept.read(tmp_path / "x.npz")


def test_a_new_run_does_not_keep_the_pictures_of_the_one_it_replaces(run):
    assert len(kept_drawings(run)[0]) == 2
    Album(run)
    assert kept_drawings(run) == ([], [])


@pytest.mark.parametrize("what", ["nothing", "a file", "no run"])
def test_a_folder_without_a_run_is_a_mistake_in_one_line(tmp_path, capsys, what):
    folder = tmp_path / "x"
    if what == "a file":
        folder.write_text("")
    if what == "no run":
        folder.mkdir()
    said = report(folder, capsys=capsys, status=2)
    assert said.startswith(f"error: '{folder}' ") and len(said.splitlines()) == 1


# ------------------------------------------------------------------------------------------- stages


def scene_run(out: Path) -> Path:
    """All stages of sound2scene but the generator, which was given; two pictures of the whole."""
    for stage in ("image", "localiser", "audio"):
        small_run(out / stage, pictures=False)
    (out / "export").mkdir()
    (out / "export" / "avfast.json").write_text("{}")
    arms = {arm: {"R@1": Score(value, chance=0.1, n=16, protocol="judged").to_dict()} for arm, value in
            (("trained", 0.6), ("shuffled", 0.1), ("true", 0.7))}  # fmt: skip
    localised = {"cIoU": Score(0.4, chance=0.1, n=16, protocol="mosaics").to_dict()}
    write_json(out / "results.json", {
        **arms, "localiser": localised, "judge": {"accuracy": Score(0.9, n=16).to_dict()}
    })  # fmt: skip
    facts = {"honesty": HONESTY, "given": {"generator": "g.pt"}, "rule": "top1", "frames": 5, "spread": 0.25}
    begin_stages(out, "sound2scene", **facts, seconds=75.0)
    album, g = Album(out), torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2, 1, 3, 8, 8), dtype=torch.uint8, generator=g)
    album.add("Volume", "figures/volume.png", Drawing("sweep", {
        "pictures": pictures, "titles": ["a", "b"], "title": "t", "heard": torch.rand(2, 4, 5), "picture": None
    }))  # fmt: skip
    album.add("Localisation", "figures/localisation.png", localisation_figure(
        torch.rand(2, 3, 8, 8), torch.rand(2, 2, 2), torch.rand(2, 3, 8, 8), torch.rand(2, 2, 2), ["a", "b"]
    ))  # fmt: skip
    assert main(["report", str(out)]) == 0
    return out


@pytest.mark.usefixtures("drawn")
def test_the_report_of_all_stages_of_a_scene_comes_back(tmp_path, monkeypatch, capsys):
    out = scene_run(tmp_path / "scene")
    said, text = capsys.readouterr().out, (out / "report.md").read_text()
    assert text.startswith(f"{HONESTY}\n\n# sound2scene: report of all stages")
    head = "A judge trained on real frames finds the right class in 0.600 of the drawn pictures, 6.0 times chance"
    assert f"**{head}" in text and head in said
    for words in (
        "| R@1    | 0.100  | 0.600 | 0.100          | 0.700     |", "The judge itself is right on 0.900",
        "chosen by rule `top1` among 5 frames; scores within a clip differ by 0.250", "| cIoU   | 0.400 | 0.100",
        "- generator: left out, `g.pt` was given", "- audio: finished at step 20 of 20, weights of step 20",
        "[report](audio/report.md)", "took 1:15", "avfast generate --audio FILE --checkpoint RUN", "![Volume](",
    ):  # fmt: skip
        assert words in text, words
    assert f"avfast generate --audio FILE --checkpoint {out} --out DIR" in said and "time: 1:15" in said
    assert "go on where it stopped" not in said
    rebuilds_itself(out, tmp_path / "copy", monkeypatch)


def test_a_scene_that_was_killed_or_damaged_is_told_as_far_as_it_goes(tmp_path, capsys):
    out = scene_run(tmp_path / "scene")
    capsys.readouterr()
    (out / "results.json").write_text('{"trained": {"R@1": 3}}')
    said = report(out, capsys=capsys, status=1)
    assert f"damaged: '{out / 'results.json'}' is damaged (a score is an object" in said
    (out / "results.json").unlink()
    (out / "audio" / "results.json").unlink()
    (out / "run.json").unlink()
    (out / "report.md").unlink()
    said, text = report(out, capsys=capsys), (out / "report.md").read_text()
    assert "not available: the run has not come to its evaluation" in text and text.startswith(HONESTY)
    assert "audio: no end on record" in text and "generator: not begun" in text
    assert "go on where it stopped: `avfast pretrain" in said


@pytest.mark.parametrize("init", ["naive", "reset_all", "abri_channel"])
def test_dead_channels_stand_as_they_were_given_before_anything_was_done_to_them(tmp_path, init):
    from types import SimpleNamespace

    from avfast.encoders import build_encoder
    from avfast.engine.dead_channels import dead_channels
    from avfast.methods.fusion_tuning import FusionTuning, FusionTuningConfig

    other = build_encoder("resnet-tiny", in_channels=3).backbone
    norms = [m for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight[:4], norm.bias[:4] = 0.0, 0.0
    torch.save(other.state_dict(), tmp_path / "other.pt")
    config = FusionTuningConfig(stage="audio", audio_from=str(tmp_path / "other.pt"), audio_init=init, classes=2)
    method = FusionTuning(config)
    state = torch.get_rng_state()
    (section,) = dead_channels(SimpleNamespace(album=Album(tmp_path / "run")), method)
    assert torch.equal(state, torch.get_rng_state())
    dead = f"{4 * len(norms)} of"
    given, start, end = section.text.split("As given: ")[1].split("At the start: ")[0], *section.text.split(": ")[2:4]
    assert given.startswith(dead)
    assert all(part.startswith(dead if init == "naive" else "0 of") for part in (start, end))
    assert "| abnormal as given | abnormal at the start | abnormal after training |" in section.text
    kept = [k.file for k in kept_drawings(tmp_path / "run")[0]]
    assert kept == [f"figures/batchnorm_audio_{when}.png" for when in ("as_given", "at_the_start", "after_training")]
    assert all(f"]({file})" in section.text for file in kept)


# ------------------------------------------------------------------------------------------- several runs


@pytest.mark.usefixtures("drawn")
def test_several_runs_stand_in_one_table_with_their_curves(run, tmp_path, capsys):
    other = small_run(tmp_path / "other", loss=4.0)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "optim.lr": 0.1}))
    killed = small_run(tmp_path / "killed", results=False)
    said = report(run, other, killed, capsys=capsys)
    assert "written" not in said and not (tmp_path / "report.md").exists()
    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("| ")}
    assert "0.500 (chance 0.100)" in rows["run"] and "1.000" in rows["run"] and "2.000" in rows["other"]
    assert "no end on record" in rows["killed"] and "chance" not in rows["killed"]
    assert rows["optim.lr"].split() == ["|", "optim.lr", "|", "0.002", "|", "0.1", "|", "0.002", "|"]
    assert "run.steps" not in rows
    assert main(["report", str(run), str(other), "--out", str(tmp_path / "both")]) == 0
    text = (tmp_path / "both" / "report.md").read_text()
    assert text.startswith(HONESTY) and "![Curves](curves.png)" in text
    assert (tmp_path / "both" / "curves.png").stat().st_size > 5000
    assert "the same run was given twice" in report(run, run, capsys=capsys, status=2)


def test_the_list_of_files_is_not_endless(run):
    for i in range(100):
        (run / f"extra-{i}").write_text("")
    read, path = rebuild.rebuild(run)
    lines = closing_lines(read, path)
    assert len(lines) < 80 and any("more, all listed in the report" in line for line in lines)
    assert "extra-99" in path.read_text()
