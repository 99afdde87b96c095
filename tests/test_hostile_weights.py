"""Files of weights from elsewhere: nothing in them runs, and no line of the sources could make it."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from avfast.cli import main
from avfast.errors import AvfastError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("avfast", "benches", "kernels", "examples", "tests", ".ci")
# Modules whose readers run what they read.
RUNNING = {"dill", "joblib", "shelve", "marshal", "cloudpickle", "jsonpickle"}
# What a call must say, by the end of its name: (keyword, value).
MUST = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "from_pretrained": ("use_safetensors", True),
}
NEVER = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter",
    "torch.serialization.add_safe_globals", "eval", "exec", "os.system",
}  # fmt: skip


def unsafe(source: str, *, test: bool = False) -> list[str]:
    """Calls and imports of a source that could run what is in a file, each with its line."""
    tree, found = ast.parse(source), []
    names = {}  # what ``from torch import load`` calls ``torch.load``
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name: a.name for a in node.names}
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in RUNNING]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            if node.module.split(".")[0] in RUNNING:
                found.append(f"{node.lineno}: from {node.module}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        head, _, rest = called.partition(".")
        called = f"{names.get(head, head)}{'.' + rest if rest else ''}"
        given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if called in NEVER and not (test and called.startswith("pickle.")):
            found.append(f"{node.lineno}: {called}")
        if given.get("trust_remote_code") or given.get("weights_only") is False or given.get("allow_pickle"):
            found.append(f"{node.lineno}: {called}(...) that trusts")
        key = "from_pretrained" if called.endswith(".from_pretrained") else called
        if key in MUST and not test and given.get(MUST[key][0]) is not MUST[key][1]:
            found.append(f"{node.lineno}: {called} without {MUST[key][0]}={MUST[key][1]}")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_source_reads_files_in_a_way_that_runs_them(folder):
    """The tests write and read their own files, with torch's own default; they too may trust none."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert not unsafe(path.read_text(), test=folder == "tests"), path


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(p)",
        "from torch import load\nload(p, map_location='cpu')",
        "from torch import load as read\nread(p, weights_only=False)",
        "import numpy as n\nn.load(p)",
        "import pickle\npickle.loads(b)",
        "import yaml\nyaml.load(t, Loader=yaml.Loader)",
        "import joblib",
        "from dill import loads",
        "model.from_pretrained(folder)",
        "model.from_pretrained(folder, use_safetensors=True, trust_remote_code=True)",
        "eval(text)",
        "import torch\ntorch.hub.load(a, b)",
    ],
)
def test_the_walk_sees(line):
    assert unsafe(line)


def test_the_walk_lets_pass():
    assert not unsafe(
        "from torch import load\nload(p, weights_only=True)\nmodel.eval()\nimport yaml\nyaml.safe_load(t)"
    )


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """What the payload would make; that it can is tried first."""
    probe = tmp_path / "probe"
    pickle.loads(pickle.dumps(Payload(probe)))
    assert probe.exists()
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists(), "the payload ran"


def written(path: Path, mark: Path, form: str) -> Path:
    """The payload as torch writes it, as a bare pickle, and as the array of a NumPy file."""
    content = {"weight": torch.ones(2), "more": Payload(mark)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "torch":
        torch.save(content, path)
    elif form == "old torch":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif form == "numpy":
        with path.open("wb") as file:
            np.savez(file, names=np.array([Payload(mark)], dtype=object))
    else:
        path.write_bytes(pickle.dumps(content))
    return path


FORMS = ("torch", "old torch", "pickle")


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text.strip() and len(text) < 1000
    return text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".safetensors"])
def test_weights(mark, tmp_path, capsys, form, ending):
    from avfast.weights import read_weights

    path = written(tmp_path / f"w{ending}", mark, form)
    with pytest.raises(AvfastError) as caught:
        read_weights(path)
    assert str(path) in one_line(caught.value)
    assert main(["bn-scan", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and path.name in error


@pytest.mark.parametrize("form", FORMS)
def test_folders_of_weights(mark, tmp_path, form):
    from avfast.weights import read_weights

    written(tmp_path / "f" / "model.safetensors", mark, form)
    with pytest.raises(AvfastError, match=r"model\.safetensors"):
        read_weights(tmp_path / "f")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_folders_of_encoders(mark, tmp_path, form, kind, name):
    """transformers itself would read ``pytorch_model.bin``."""
    transformers = pytest.importorskip("transformers", reason="encoders are of transformers")
    pytest.importorskip("safetensors", reason="weights are safetensors")
    from avfast.encoders import build_encoder

    folder = tmp_path / "encoder"
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    (transformers.ResNetConfig() if kind == "resnet" else config).save_pretrained(folder)
    written(folder / name, mark, form)
    with pytest.raises(AvfastError, match="encoder folder '.*' cannot be read") as caught:
        build_encoder(str(folder), in_channels=3)
    one_line(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints(mark, tmp_path, form):
    from avfast.engine.checkpoint import load_checkpoint

    path = written(tmp_path / "run" / "checkpoints" / "last.pt", mark, form)
    with pytest.raises(AvfastError) as caught:
        load_checkpoint(path)
    assert str(path) in one_line(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_scene_targets_and_exports(mark, tmp_path, capsys, form):
    pytest.importorskip("safetensors", reason="weights are safetensors")
    from avfast.nn.scene_targets import SceneTargets

    with pytest.raises(AvfastError, match="cannot be read") as caught:
        SceneTargets.read(written(tmp_path / "targets.safetensors", mark, form))
    one_line(caught.value)


@pytest.mark.parametrize("form", [*FORMS, "numpy"])
def test_indexes(mark, tmp_path, form):
    from avfast.data.index_files import load_index

    assert load_index(written(tmp_path / "index.npz", mark, form), {"names": "names"}) is None


def test_the_walk_knows_every_reader_of_files_that_torch_and_transformers_offer_here():
    """A new reader comes with a test here: these are all there are."""
    readers = {}
    for path in sorted((ROOT / "avfast").rglob("*.py")):
        tree = ast.parse(path.read_text())
        froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "torch"]
        calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        calls += [f"torch.{alias.name}" for node in froms for alias in node.names]
        wanted = ("torch.load", "np.load", "load_file", "safe_open")
        found = [c for c in calls if c in wanted or c.endswith((".from_pretrained", ".load_file"))]
        if found:
            readers[str(path.relative_to(ROOT / "avfast"))] = len(found)
    assert set(readers) == {
        "weights.py", "encoders.py", "vit.py", "nn/bn_scan_command.py", "nn/scene_targets.py", "engine/checkpoint.py",
        "data/index_files.py", "engine/drawing.py",
    }  # fmt: skip
