"""`avfast generate`: pictures from sound files, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

for library in ("av", "transformers", "safetensors", "PIL"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from data_fixtures import plain_clip  # noqa: E402
from engine_fixtures import real_clips  # noqa: E402
from PIL import Image  # noqa: E402
from scene_fixtures import (  # noqa: E402, F401
    INPUTS,
    SIZE,
    finished_run,
    loaded_synthesiser,
    quiet_noise,
    small_modules,
    tone,
    write_run,
    write_wav,
)
from test_cli_hostile import one_line  # noqa: E402

from avfast.cli import main  # noqa: E402
from avfast.engine.scene.generate_options import GenerateOptions  # noqa: E402
from avfast.engine.scene.sound import read_sound  # noqa: E402
from avfast.engine.scene.synthesis import Synthesiser  # noqa: E402
from avfast.errors import ConfigError  # noqa: E402
from avfast.nn.latents import mix_latents  # noqa: E402

RATE = INPUTS.sample_rate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Sheets take longer than pictures, so only the test that asks for `sheet` gets one."""
    if "sheet" not in request.fixturenames:
        monkeypatch.setattr("avfast.engine.scene.manipulation.matplotlib_figure", lambda: None)


@pytest.fixture
def sheet():
    pytest.importorskip("matplotlib", reason="the sheet needs matplotlib")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Sound of several kinds by name."""
    folder = tmp_path_factory.mktemp("sounds")
    left, right = tone(1.5, 48000, 300.0), tone(1.5, 48000, 2000.0, 0.2)
    files = {
        "narrow": write_wav(folder / "narrow.wav", tone(2.0, 8000, 700.0), 8000),
        "stereo": write_wav(folder / "stereo.wav", np.stack([left, right], 1), 48000),
        "short": write_wav(folder / "short.wav", tone(0.2, RATE, 150.0), RATE),
        "silent": write_wav(folder / "silent.wav", np.zeros(RATE), RATE),
        "noise": write_wav(folder / "noise.wav", quiet_noise(2.0, level=0.1).numpy(), RATE),
    }
    return files


def command(*sounds, run, out, **options) -> list[str]:
    words = ["generate", "--audio", *map(str, sounds), "--checkpoint", str(run), "--out", str(out), "--device", "cpu"]
    for name, value in {"count": 2, **options}.items():
        option = "--" + name.replace("_", "-")
        words += [option] if value is True else [option, str(value)]
    return words


def pngs(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.png")) if p.name != "contact_sheet.png"}


def listed(folder) -> dict:
    return json.loads((folder / "generated.json").read_text())


def test_every_kind_of_sound_becomes_pictures(capsys, run, sounds, tmp_path, sheet):
    out = tmp_path / "new" / "out"
    clip = sorted((real_clips() / "clips").iterdir())[0]
    assert main(command(*sounds.values(), clip, run=run, out=out, count=3, seed=4)) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "silent.wav: 1.0 s, 16000 Hz, 1 channel; silent" in captured.out
    assert "stereo.wav: 1.5 s, 48000 Hz, 2 channels\n" in captured.out
    stems = [*sounds, clip.stem]
    assert sorted(pngs(out)) == sorted(f"{stem}_{k}.png" for stem in stems for k in range(3))
    with Image.open(out / "narrow_0.png") as image:
        assert image.size == (SIZE, SIZE) and image.mode == "RGB"
    with Image.open(out / "contact_sheet.png") as image:
        assert min(image.size) > 200
    made = listed(out)
    assert (made["seed"], made["count"], made["gain"], made["failed"]) == (4, 3, 1.0, [])
    assert made["fingerprint"] == Synthesiser.load(run).fingerprint
    rows = {row["name"]: row for row in made["sounds"]}
    assert rows["narrow"]["sample_rate"] == 8000 and rows["stereo"]["channels"] == 2
    assert [name for name, row in rows.items() if row["silent"]] == ["silent"]
    assert rows["short"]["duration"] == pytest.approx(0.2) and rows["short"]["file"] == str(sounds["short"])
    assert rows["short"]["pictures"] == [f"short_{k}.png" for k in range(3)]


def test_pictures_are_those_of_the_synthesiser(run, sounds, tmp_path, synthesiser):
    assert main(command(sounds["noise"], run=run, out=tmp_path, seed=6)) == 0
    z = synthesiser.embed(read_sound(sounds["noise"], RATE, 1.0)[None])
    for k, expected in enumerate(synthesiser.images(z, seed=6, count=2)[0]):
        with Image.open(tmp_path / f"noise_{k}.png") as image:
            assert np.array_equal(np.asarray(image), expected.permute(1, 2, 0).numpy())


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(run, sounds, tmp_path):
    files = [sounds["noise"], sounds["narrow"]]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main(command(*files, run=run, out=tmp_path / name, seed=seed)) == 0
    assert pngs(tmp_path / "a") == pngs(tmp_path / "b")
    assert all(pngs(tmp_path / "a")[name] != data for name, data in pngs(tmp_path / "c").items())
    # A sound is drawn by itself: the other files of the call do not matter.
    assert main(command(sounds["narrow"], run=run, out=tmp_path / "d", seed=1)) == 0
    assert pngs(tmp_path / "d").items() <= pngs(tmp_path / "a").items()


def test_gain_multiplies_the_waveform_before_the_front_end(run, sounds, tmp_path, synthesiser):
    x = read_sound(sounds["noise"], RATE, 1.0)[None]
    expected = synthesiser.images(synthesiser.embed(0.1 * x), count=2)[0]
    assert main(command(sounds["noise"], run=run, out=tmp_path, gain=0.1)) == 0
    with Image.open(tmp_path / "noise_0.png") as image:
        assert np.array_equal(np.asarray(image), expected[0].permute(1, 2, 0).numpy())
    assert not torch.equal(expected, synthesiser.images(synthesiser.embed(x), count=2)[0])
    assert listed(tmp_path)["gain"] == 0.1


def test_too_much_gain_is_said(capsys, run, sounds, tmp_path):
    assert main(command(sounds["narrow"], run=run, out=tmp_path, gain=100)) == 0
    assert "of the samples of 'narrow' are beyond full scale and are clipped" in capsys.readouterr().out
    assert listed(tmp_path)["sounds"][0]["clipped"] > 0.9


def test_a_mixture_is_one_scene(run, sounds, tmp_path, synthesiser):
    assert main(command(sounds["noise"], sounds["narrow"], run=run, out=tmp_path, mix=True, gain=0.5)) == 0
    assert sorted(pngs(tmp_path)) == ["mix_0.png", "mix_1.png"]
    both = sum(read_sound(sounds[name], RATE, 1.0) for name in ("noise", "narrow"))
    expected = synthesiser.images(synthesiser.embed(0.5 * both[None]), count=2)[0]
    with Image.open(tmp_path / "mix_1.png") as image:
        assert np.array_equal(np.asarray(image), expected[1].permute(1, 2, 0).numpy())
    (row,) = listed(tmp_path)["sounds"]
    assert [part["file"] for part in row["parts"]] == [str(sounds["noise"]), str(sounds["narrow"])]


def test_a_picture_and_a_sound_condition_together(run, sounds, tmp_path, synthesiser):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "seen.png")
    z_a = synthesiser.embed(read_sound(sounds["noise"], RATE, 1.0)[None])
    z_v = synthesiser.embed_pictures(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    for share, out in ((None, tmp_path / "half"), (0.8, tmp_path / "most")):
        more = {} if share is None else {"share": share}
        assert main(command(sounds["noise"], run=run, out=out, with_image=tmp_path / "seen.png", **more)) == 0
        expected = synthesiser.images(mix_latents(z_v, z_a, share or 0.5), count=2)[0]
        with Image.open(out / "noise_0.png") as image:
            assert np.array_equal(np.asarray(image), expected[0].permute(1, 2, 0).numpy())
        assert listed(out)["share"] == (share or 0.5)


def test_folders_files_of_one_name_and_files_named_twice(run, sounds, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for place in ("a.wav", "deep/a.wav", "notes.txt", ".hidden.wav"):
        shutil.copy(sounds["short"], tmp_path / "in" / place)
    twice = tmp_path / "in" / "a.wav"
    assert main(command(tmp_path / "in", twice, run=run, out=tmp_path / "out", count=1)) == 0
    assert sorted(pngs(tmp_path / "out")) == ["a-2_0.png", "a_0.png"]


def test_files_that_fail_are_named_and_the_rest_is_done(capsys, run, sounds, tmp_path):
    (tmp_path / "torn.mp3").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.ogg").touch()
    (tmp_path / "nothing").mkdir()
    mute = plain_clip(tmp_path / "mute.mp4", sound=False)
    bad = [tmp_path / "torn.mp3", tmp_path / "empty.ogg", tmp_path / "nothing", mute, tmp_path / "nowhere.wav"]
    out = tmp_path / "out"
    assert main(command(bad[0], sounds["short"], *bad[1:], run=run, out=out, count=1)) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == error.count("\n") == 5
    causes = {"torn.mp3": "may be truncated", "empty.ogg": "is empty", "nothing": "holds no media files",
              "mute.mp4": "has no audio stream", "nowhere.wav": "no such file"}  # fmt: skip
    for path in bad:
        (line,) = [line for line in error.splitlines() if line.startswith(f"error: {path}: ")]
        assert causes[path.name] in line
    assert list(pngs(out)) == ["short_0.png"]
    assert {row["file"] for row in listed(out)["failed"]} == {str(path) for path in bad}

    assert main(command(*bad, run=run, out=tmp_path / "none")) == 2
    assert capsys.readouterr().err.count("error: ") == 5 and not (tmp_path / "none").exists()
    assert main(command(sounds["short"], sounds["noise"], bad[1], run=run, out=tmp_path / "none", mix=True)) == 2
    assert "is empty" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_sound_without_an_answer_is_a_failure(capsys, sounds, tmp_path):
    modules = small_modules()
    modules["audio_head"].bias.data.fill_(-1e6)
    dead = write_run(tmp_path / "dead", modules)
    assert main(command(sounds["short"], run=dead, out=tmp_path / "out")) == 2
    assert "short.wav: the audio encoder gives it a latent of zeros" in capsys.readouterr().err


def test_a_folder_of_its_own_is_replaced_and_another_is_left_alone(capsys, run, sounds, tmp_path):
    out = tmp_path / "out"
    assert main(command(sounds["short"], sounds["noise"], run=run, out=out, count=3)) == 0
    (out / "mine.txt").write_text("kept")
    assert main(command(sounds["narrow"], run=run, out=out, count=1)) == 0
    assert list(pngs(out)) == ["narrow_0.png"] and (out / "mine.txt").read_text() == "kept"
    # A list that points elsewhere removes nothing there.
    made = listed(out)
    made["sounds"][0]["pictures"].append("../seen.png")
    (tmp_path / "seen.png").write_text("precious")
    (out / "generated.json").write_text(json.dumps(made))
    assert main(command(sounds["short"], run=run, out=out, count=1)) == 0
    assert (tmp_path / "seen.png").read_text() == "precious"

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "short_0.png").write_text("precious")
    capsys.readouterr()
    for text in (None, "{", "[]", '{"generator": "something else", "sounds": []}'):
        if text is not None:
            (foreign / "generated.json").write_text(text)
        assert "holds files that avfast generate did not write" in one_line(
            capsys, *command(sounds["short"], run=run, out=foreign)
        )
    assert (foreign / "short_0.png").read_text() == "precious"
    assert "is not a folder" in one_line(capsys, *command(sounds["short"], run=run, out=tmp_path / "seen.png"))


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"count": 0}, "--count: expected 1 to 1000, got 0"),
        ({"seed": -1}, "--seed: expected 0 or more"),
        ({"gain": 0}, "--gain: expected a finite number above 0"),
        ({"gain": "nan"}, "--gain: expected a finite number above 0"),
        ({"share": 0.5}, "--share: is of the picture of --with-image"),
        ({"with_image": "x.png", "share": 1.5}, "--share: expected a number in [0, 1]"),
        ({"with_image": "x.png"}, "x.png: does not exist"),
        ({"mix": True}, "--mix: expected two sounds or more, got 1"),
        ({"gain": "loud"}, "invalid float value: 'loud'"),
        ({"shares": 1}, "unknown argument '--shares'; did you mean '--share'?"),
    ],
    ids=str,
)
def test_wrong_options(capsys, run, sounds, tmp_path, options, answer):
    assert answer in one_line(capsys, *command(sounds["short"], run=run, out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(capsys, run, sounds, tmp_path):
    words = command(sounds["short"], run=run, out=tmp_path / "out")
    words[words.index("cpu")] = "cuda"
    assert "--device cuda: this torch sees no CUDA device" in one_line(capsys, *words)


def test_options_name_themselves():
    assert str(GenerateOptions()) == "seed 0" and GenerateOptions().share is None
    with pytest.raises(ConfigError, match="--share"):
        GenerateOptions(share=0.1)


def test_the_command_says_what_is_wrong_with_a_run(capsys, sounds, tmp_path):
    words = command(sounds["short"], run=tmp_path / "nowhere", out=tmp_path / "out")
    assert one_line(capsys, *words) == f"error: checkpoint '{tmp_path / 'nowhere'}': no such folder\n"
    assert not (tmp_path / "out").exists()
