"""Lists, labels and file names from elsewhere: none reaches outside the data, none writes on a terminal or a table."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("av", reason="the files are clips, which PyAV reads")
pytest.importorskip("rich", reason="tables are printed with rich")

from data_fixtures import plain_clip  # noqa: E402

from avfast.cli import main  # noqa: E402
from avfast.data.layouts import open_layout  # noqa: E402
from avfast.data.media import MediaError, probe  # noqa: E402
from avfast.data.scan import VERSION, scan_media  # noqa: E402
from avfast.data.sources import ClipSource  # noqa: E402
from avfast.errors import ConfigError, DataError, UnreadableFile  # noqa: E402
from avfast.printable import code, printable  # noqa: E402

OUTSIDE = (
    "../secret.mp4", "a/../../secret.mp4", "/etc/passwd", "//etc/passwd", "./../secret.mp4", "..",
    "..\\secret.mp4", "a\\..\\..\\secret.mp4", "C:\\secret.mp4", "C:/secret.mp4", "\\\\server\\share\\secret.mp4",
)  # fmt: skip
NO_FILES = (
    "zero\0byte.mp4",
    "x" * 300 + ".mp4",
    "a/" * 3000 + "b.mp4",
    "．．／secret.mp4",
    "..%2fsecret.mp4",
    "\u202e4pm.x",
)
# Clears the screen, writes over the line, ends a table, opens one, styles text, turns the writing around, is no text.
NAMES = (
    "a\x1b[2Jb.mp4",
    "a\rb.mp4",
    "a\nb.mp4",
    "a|b.mp4",
    "a[red]b[bold].mp4",
    "a\u202eb.mp4",
    "a\udcffb.mp4",
    "`b`.mp4",
)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "data" / "good.mp4").write_bytes(b"good")
    return tmp_path / "data"


def csv(root: Path, *paths: str) -> Path:
    quoted = ['"' + path.replace('"', '""') + '"' for path in paths]
    (root / "list.csv").write_text("\n".join(["path", *quoted, ""]), errors="surrogateescape")
    return root / "list.csv"


def manifest(root: Path, *clips: dict) -> Path:
    (root / "manifest.json").write_text(json.dumps({"clips": list(clips)}))
    return root


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_list_leaves_its_folder(root, path):
    for source in (csv(root, "good.mp4", path), manifest(root, {"path": path})):
        with pytest.raises(DataError, match="leaves the folder of the list; allow_outside=True permits that"):
            ClipSource.open(source)
    with pytest.raises(DataError, match="leaves the folder"):
        ClipSource.open(manifest(root, {"path": "good.mp4", "mask": path}))


@pytest.mark.parametrize("path", NO_FILES, ids=range(len(NO_FILES)))
def test_what_no_file_is_called_is_a_missing_file(root, path):
    source = manifest(root, {"path": "good.mp4"}, {"path": path})
    with pytest.raises(DataError, match="1 of 2 listed files do not exist") as caught:
        ClipSource.open(source)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert len(ClipSource.open(source, missing="drop")) == 1


@pytest.mark.parametrize(
    "text", ["path\na\0.mp4\n", "path\n" + '"' * 5, 'path\n"' + "x" * 200_000 + '"\n', "\0", "path\xff\n"]
)
def test_a_broken_csv_is_one_message(root, text):
    (root / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError):
        ClipSource.open(root / "list.csv")


def test_links_on_the_disk_are_followed(root, tmp_path):
    """The decision: a list cannot make a link, and folders that lie on another disk are every day's work."""
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (elsewhere / "far.mp4").write_bytes(b"far")
    os.symlink(elsewhere, root / "videos")
    os.symlink(root, tmp_path / "link")
    assert [r.path.name for r in ClipSource.open(csv(root, "videos/far.mp4")).records] == ["far.mp4"]
    assert len(ClipSource.open(tmp_path / "link" / "list.csv")) == 1
    with pytest.raises(DataError, match="leaves the folder"):
        ClipSource.open(csv(root, "videos/../secret.mp4"))


def test_lists_of_published_layouts_name_files_and_not_places(root):
    (root / "vggsound.csv").write_text('../../secret,0,"dog",train\ngood,0,"dog",train\ngood,inf,"dog",train\n')
    with pytest.raises(DataError, match="line 3: start: expected seconds, got 'inf'"):
        open_layout("vggsound", root)
    (root / "vggsound.csv").write_text('../../secret,0,"dog",train\n../secret,0,dog,train\n')
    with pytest.raises(DataError, match="none of the 2 clips"):
        open_layout("vggsound", root)


def test_a_memory_that_came_with_the_data_is_checked(root):
    status = (root / "good.mp4").stat()
    stamp = [status.st_size, status.st_mtime_ns]
    cache = root / ".avfast-cache.json"
    for lie in ({}, 7, {"problems": [], "path": 1}, {"path": "x", "problems": ["none such"]}, {"a": 1, "problems": ()}):
        cache.write_text(json.dumps({f"scan-{VERSION}-1": {"good.mp4": [stamp, lie]}}))
        assert scan_media(root).files[0].problems == ("unreadable",)
    for text in ("[" * 100_000, '{"scan-2-1": 7}', "\0"):
        cache.write_text(text)
        assert scan_media(root).files[0].problems == ("unreadable",)


def test_deep_and_self_referring_text_is_refused(root, tmp_path):
    pytest.importorskip("jsonargparse", reason="configurations need jsonargparse")
    from avfast.engine.config import parse_config

    (root / "manifest.json").write_text('{"clips": ' + "[" * 100_000)
    with pytest.raises(DataError, match="cannot be read as JSON"):
        ClipSource.open(root)
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for this, before in zip("bcdefghij", "abcdefghi", strict=True):
        laughs += f"{this}: &{this} [{', '.join([f'*{before}'] * 10)}]\n"
    texts = {
        "laughs": laughs,
        "self": "optim: &o {lr: *o}",
        "deep": "[" * 1_200,
        "code": "lr: !!python/object/apply:os.system [x]",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(ConfigError, match=rf"configuration file '.*{name}\.yaml'"):
            parse_config("av-align", file=tmp_path / f"{name}.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="configuration file"):
        parse_config("av-align", file=tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "method: " + '{"a": [' * 10_000, "method: {dim: '" + "[" * 20_000 + "'}"],
    ids=["brackets", "mixed", "quoted"],
)
def test_brackets_within_brackets_are_refused_before_a_parser_sees_them(tmp_path, monkeypatch, text):
    """For which YAML's would take half a minute."""
    yaml = pytest.importorskip("yaml", reason="configurations need jsonargparse")
    from avfast.engine.config import parse_config

    monkeypatch.setattr(yaml, "scan", lambda text: pytest.fail("it was parsed"))
    file = tmp_path / "deep.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"^configuration file '{file}': expected at most 32 brackets within each"):
        parse_config("av-align", file=file)
    with pytest.raises(ConfigError, match="^method.dim: expected at most 32 brackets within each other, found more$"):
        parse_config("av-align", [f"dim={text}"])


def test_a_large_configuration_is_refused_and_one_at_the_limits_is_read(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="configurations need jsonargparse")
    from avfast.engine import config_file
    from avfast.engine.config import parse_config

    monkeypatch.setattr(config_file, "MOST_BYTES", 1000)
    file, text = tmp_path / "large.yaml", "method: {dim: 9}\n#"
    file.write_text(text + "x" * (1000 - len(text)))
    assert parse_config("av-align", file=file).method.dim == 9
    with file.open("a") as handle:
        handle.write("x")
    with pytest.raises(ConfigError, match=f"^configuration file '{file}': expected at most 1000 bytes, found more$"):
        parse_config("av-align", file=file)
    deepest = config_file.DEEPEST
    file.write_text("x: " + "[" * deepest + "]" * deepest + "\ny: [[], {}]")
    assert list(config_file.read_config_file(file)) == ["x", "y"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_file_names_do_not_write_on_the_terminal(tmp_path, capsys, name):
    """Broken files of these names, through the scan: one row each, as it is written."""
    folder = tmp_path / "clips"
    folder.mkdir()
    plain_clip(folder / "whole.mp4")
    (folder / name).write_bytes(b"broken")
    assert main(["media-scan", str(folder)]) == 1
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    shown = printable(name)
    assert shown in out.replace("\n", "") or all(part in out for part in shown.split("b", 1))
    text = str(scan_media(folder))
    assert text.isprintable() is False and [line.isprintable() for line in text.split("\n")] == [True] * 2
    assert shown in text
    with pytest.raises(MediaError) as caught:
        probe(folder / name)
    assert str(caught.value).isprintable() and shown in str(caught.value)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_errors_of_the_command_line_are_one_clean_line(tmp_path, capsys, name):
    assert main(["media-scan", str(tmp_path / name)]) == 2
    assert main(["bn-scan", str(tmp_path / name)]) == 2
    for line in capsys.readouterr().err.split("\n"):
        assert line.isprintable()


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_in_markdown_are_code(name):
    text = code(name)
    assert text.isprintable() and text.count("`") == 2 and "|" not in text


def test_errors_travel_between_processes_as_they_are():
    import pickle

    error = pickle.loads(pickle.dumps(UnreadableFile("a\x1b.mp4", "broken", "is\nbroken")))
    assert (error.path, error.cause, str(error)) == ("a\x1b.mp4", "broken", "a\\x1b.mp4: is\\nbroken")
