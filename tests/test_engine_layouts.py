"""Published data sets in small, trained on for a few steps: what a user has on disk is what `--data` takes."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
from data_fixtures import plain_clip

for library in ("PIL", "av", "sklearn", "accelerate", "jsonargparse", "transformers", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed")

from avfast.cli import main  # noqa: E402

TINY = ("method.size=32", "method.frames=2", "method.duration=1", "batch_size=4", "steps=2", "run.control=false",
        "audio=resnet-tiny", "visual=resnet-tiny")  # fmt: skip
OWN = {"esc50": ("method.spectrogram=esc50", "method.repeats=2", "method.spec_augment=[15,30]")}
CLASSES = ("ANG", "SAD")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> bytes:
    return plain_clip(tmp_path_factory.mktemp("media") / "clip.mp4", seconds=1.5).read_bytes()


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("media") / "clip.avi"
    return plain_clip(path, seconds=1.5, sound=False, video_codec=("mpeg4",)).read_bytes()


def write(root, path: str, content: bytes | str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def put(root, path: str, media: bytes, number: int) -> None:
    write(root, path, media + bytes([number % 256, number // 256]))  # other bytes, another clip


def kinetics_sounds(root, media, silent):
    names = [f"a_{i}b_{i}" for i in range(24)]
    write(root, "my_train.txt", "\n".join(f"{n},10,{i % 2}" for i, n in enumerate(names[:18])))
    write(root, "my_test.txt", "\n".join(f"{n},10,{i % 2}" for i, n in enumerate(names[18:])))
    for i, name in enumerate(names):
        put(root, f"video/{name}.mp4", media, i)


def kinetics(root, media, silent):
    head = "label,youtube_id,time_start,time_end,split"
    for split, ids in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 20))):
        lines = [head, *(f"{CLASSES[i % 2]},id{i},0,10,{split}" for i in ids)]
        write(root, f"annotations/{split}.csv", "\n".join(lines))
        for i in ids:
            put(root, f"{split}/id{i}_000000_000010.mp4", media, i)


def vggsound(root, media, silent):
    write(root, "vggsound.csv", "\n".join(f"id{i},30,{CLASSES[i % 2]},{'test' if i > 19 else 'train'}"
                                          for i in range(26)))  # fmt: skip
    for i in range(26):
        put(root, f"video/id{i}_000030.mp4", media, i)


def crema_d(root, media, silent):
    for i in range(60):
        put(root, f"VideoFlash/{1001 + i}_IEO_{CLASSES[i % 2]}_HI.flv", media, i)
        write(root, f"AudioWAV/{1001 + i}_IEO_{CLASSES[i % 2]}_HI.wav", b"not read")


def ave(root, media, silent):
    for split, ids in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 20))):
        write(root, f"{split}Set.txt", "\n".join(f"{CLASSES[i % 2]}&v{i}&good&0&10" for i in ids))
        for i in ids:
            put(root, f"AVE/v{i}.mp4", media, i)
    write(root, "Annotations.txt", "Category&VideoID&Quality&StartTime&EndTime\n")


def esc50(root, media, silent):
    lines, rng = ["filename,fold,target,category,esc10,src_file,take"], np.random.default_rng(0)
    for i in range(40):
        name = f"{i % 5 + 1}-{i}-A-{i // 20}.wav"
        lines.append(f"{name},{i % 5 + 1},{i // 20},{CLASSES[i // 20]},False,{i},A")
        (root / "audio").mkdir(exist_ok=True)
        with wave.open(str(root / "audio" / name), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(44100)
            file.writeframes(rng.integers(-9000, 9000, 66150).astype("<i2").tobytes())
    write(root, "meta/esc50.csv", "\n".join(lines))


def ucf101(root, media, silent):
    write(root, "ucfTrainTestlist/classInd.txt", "1 ANG\n2 SAD\n")
    names = [f"{c}/v_{c}_g{g:02d}_c01" for g in range(1, 21) for c in CLASSES]
    write(root, "ucfTrainTestlist/testlist01.txt", "\n".join(f"{n}.avi" for n in names[:8]))
    write(root, "ucfTrainTestlist/trainlist01.txt", "\n".join(f"{n}.avi {i % 2 + 1}" for i, n in enumerate(names[8:])))
    for i, name in enumerate(names):
        put(root, f"UCF-101/{name}.avi", silent, i)


@pytest.mark.parametrize(
    ("layout", "make", "stage"),
    [
        ("kinetics", kinetics, "joint"),
        ("kinetics-sounds", kinetics_sounds, "joint"),
        ("vggsound", vggsound, "joint"),
        ("crema-d", crema_d, "joint"),
        ("ave", ave, "joint"),
        ("esc50", esc50, "audio"),
        ("ucf101", ucf101, "video"),
    ],
)
def test_a_few_steps_on_every_layout(layout, make, stage, tmp_path, media, silent):
    root, out = tmp_path / "data", tmp_path / "run"
    root.mkdir()
    make(root, media, silent)
    command = ["pretrain", "--recipe", "fusion-tuning", "--data", f"{layout}:{root}", "--out", str(out), "--device",
               "cpu", f"method.stage={stage}", "method.sampling=segments", *TINY, *OWN.get(layout, ())]  # fmt: skip
    assert main(command) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["step"] == 2 and results["scores"]["trained"][f"accuracy {stage}"]["n"] >= 4


def test_a_stage_that_needs_pictures_says_that_there_are_none(tmp_path, capsys):
    esc50(tmp_path, b"", b"")
    command = ["pretrain", "--recipe", "fusion-tuning", "--data", f"esc50:{tmp_path}", "--out", str(tmp_path / "run")]
    assert main([*command, "--device", "cpu", "method.stage=video", *TINY]) != 0
    assert "has no video stream" in capsys.readouterr().err
