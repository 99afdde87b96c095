"""Folders, lists and manifests as sources of clips."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from avfast.data.identity import file_sha256
from avfast.data.index_files import FOLDER
from avfast.data.sources import ClipSource
from avfast.errors import DataError

# A source never opens a file as media, so any bytes do.


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_folder_without_classes_has_no_labels(tmp_path):
    source = ClipSource.open(put(tmp_path, "b.mp4", "a.MKV", "notes.txt", ".hidden/c.mp4"))
    assert [r.path.name for r in source.records] == ["a.MKV", "b.mp4"]
    assert source.classes == () and source.labels == [-1, -1] and source.splits == {}
    assert source.records[1].id == file_sha256(tmp_path / "b.mp4")


def test_class_folders_are_labels(tmp_path):
    source = ClipSource.open(put(tmp_path, "dog/1.mp4", "cat/1.mp4", "cat/2.mp4"))
    assert source.classes == ("cat", "dog") and source.labels == [0, 0, 1]
    assert ClipSource.open(put(tmp_path, "loose.mp4")).classes == ()


def test_one_folder_is_not_a_class(tmp_path):
    assert ClipSource.open(put(tmp_path, "clips/1.mp4", "clips/2.mp4")).classes == ()


def test_split_folders(tmp_path):
    source = ClipSource.open(put(tmp_path, "train/cat/1.mp4", "train/dog/2.mp4", "valid/cat/3.mp4"))
    assert source.splits == {"train": 2, "val": 1}
    assert source.split("val").classes == ("cat", "dog")
    assert source.split("val").labels == [0]
    with pytest.raises(DataError, match="no clips in split 'test'"):
        source.split("test")


def test_csv(tmp_path):
    put(tmp_path, "x/1.mp4", "2.mp4")
    (tmp_path / "list.csv").write_text("path, label,split\nx/1.mp4,cat,train\n2.mp4,,test\n")
    source = ClipSource.open(tmp_path / "list.csv")
    assert [(r.label, r.split) for r in source.records] == [("cat", "train"), (None, "test")]
    assert source.labels == [0, -1]


def test_label_file(tmp_path):
    put(tmp_path, "1.mp4", "2.mp4")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n1.mp4,cat\n")
    assert ClipSource.open(tmp_path, labels=labels).labels == [0, -1]
    labels.write_text("path,label\n1.mp4,cat\n9.mp4,dog\n")
    with pytest.raises(DataError, match=r"1 files that are not in the data \(first: 9.mp4\)"):
        ClipSource.open(tmp_path, labels=labels)


def test_manifest_in_a_folder(tmp_path):
    put(tmp_path, "1.mp4", "unlisted.mp4")
    clips = {"clips": [{"path": "1.mp4", "label": 3, "split": "train", "duration": 2}], "media": {"x": 1}}
    (tmp_path / "manifest.json").write_text(json.dumps(clips))
    source = ClipSource.open(tmp_path)
    assert len(source) == 1 and source.classes == ("3",) and source.records[0].duration == 2.0
    assert source.manifest["media"] == {"x": 1}
    assert ClipSource.open(tmp_path / "manifest.json") == source


@pytest.mark.parametrize("path", ["../secret.mp4", "a/../../secret.mp4", "/etc/passwd"])
def test_lists_cannot_leave_their_folder(tmp_path, path):
    root = put(tmp_path / "data", "ok.mp4")
    put(tmp_path, "secret.mp4")
    (root / "list.csv").write_text(f"path\nok.mp4\n{path}\n")
    (root / "manifest.json").write_text(json.dumps({"clips": [{"path": path}]}))
    for source in (root / "list.csv", root, root / "manifest.json"):
        with pytest.raises(DataError, match="leaves the folder"):
            ClipSource.open(source)
    if path == "../secret.mp4":
        assert len(ClipSource.open(root / "list.csv", allow_outside=True)) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "l.csv",
            "file,label\na.mp4,x\n",
            r"expected a column 'path' in the first line, found \['file', 'label'\]",
        ),
        ("l.csv", "", "expected a column 'path' in the first line, found nothing"),
        ("l.csv", "path\n", "has a header and no rows"),
        ("l.csv", "path,label\n,x\n", "line 2: the path is empty"),
        ("l.csv", "path,duration\na.mp4,long\n", "line 2: duration: expected seconds, got 'long'"),
        ("l.csv", "path\na.mp4\nb.mp4\n", r"2 of 2 listed files do not exist \(a.mp4, b.mp4\)"),
        ("m.json", "{", "cannot be read as JSON"),
        ("m.json", "[]", "expected an object with a list 'clips'"),
        ("m.json", '{"clips": [{"label": "x"}]}', r"clips\[0\]: expected an object with a 'path'"),
        ("m.json", '{"clips": []}', "lists no clips"),
        ("words.txt", "hello", "expected a folder, a .csv list, a .json manifest or .tar shards"),
    ],
)
def test_bad_lists_say_what_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        ClipSource.open(tmp_path / name)
    assert name in str(caught.value)


def test_bad_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        ClipSource.open(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no media files; looked for \.mp4"):
        ClipSource.open(tmp_path)


def test_missing_files_can_be_dropped_and_are_counted(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "l.csv").write_text("path\na.mp4\ngone.mp4\n")
    source = ClipSource.open(tmp_path / "l.csv", missing="drop")
    assert len(source) == 1 and source.missing == 1


def test_fingerprint_is_of_content_and_not_of_names_or_order(tmp_path):
    a = put(tmp_path / "a", "cat/1.mp4", "dog/2.mp4")
    b = tmp_path / "b"
    (b / "cat").mkdir(parents=True), (b / "dog").mkdir()
    shutil.copy(a / "dog/2.mp4", b / "dog/aaa.mp4")
    shutil.copy(a / "cat/1.mp4", b / "cat/zzz.mov")
    first = ClipSource.open(a).fingerprint
    assert ClipSource.open(b).fingerprint == first and len(first) == 64
    (b / "dog/aaa.mp4").write_bytes(b"other")
    assert ClipSource.open(b).fingerprint != first


def test_fingerprint_sees_labels_and_splits(tmp_path):
    put(tmp_path, "1.mp4", "2.mp4")
    prints = set()
    for rows in ("1.mp4,x,train\n2.mp4,y,test", "1.mp4,y,train\n2.mp4,x,test", "1.mp4,x,test\n2.mp4,y,train"):
        (tmp_path / "l.csv").write_text("path,label,split\n" + rows)
        prints.add(ClipSource.open(tmp_path / "l.csv").fingerprint)
    assert len(prints) == 3


def test_ids_are_cached_until_the_file_changes(tmp_path, monkeypatch):
    import avfast.data.identity as identity

    put(tmp_path, "1.mp4", "2.mp4")
    first = ClipSource.open(tmp_path)
    hashed = []
    whole = identity.content_digest
    monkeypatch.setattr(identity, "content_digest", lambda path: hashed.append(os.path.basename(path)) or whole(path))
    assert ClipSource.open(tmp_path) == first and hashed == []
    (tmp_path / "2.mp4").write_bytes(b"changed")
    assert ClipSource.open(tmp_path) != first and hashed == ["2.mp4"]
    (index,) = (tmp_path / FOLDER).iterdir()
    index.write_text("not an index")
    ClipSource.open(tmp_path)
    assert hashed == ["2.mp4", "1.mp4", "2.mp4"]
    index.write_bytes(index.read_bytes()[:-40])
    assert len(ClipSource.open(tmp_path)) == 2 and len(hashed) == 5


def test_read_only_folder(tmp_path, monkeypatch):
    """Data are often mounted read-only: the cache goes to the user's folder and nothing fails."""
    root = put(tmp_path / "data", "1.mp4")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    ClipSource.open(root)
    assert not list((root / FOLDER).iterdir())
    assert len(list((tmp_path / "cache" / "avfast").glob("*/*.npz"))) == 1


def test_automatic_splits_depend_on_content_only(tmp_path):
    put(tmp_path, *[f"{i:03d}.mp4" for i in range(200)])
    source = ClipSource.open(tmp_path)
    split = source.with_splits(val=0.1, test=0.2)
    sizes = split.splits
    assert sum(sizes.values()) == 200 and 22 <= sizes["test"] <= 58 and 8 <= sizes["val"] <= 34
    where = {r.id: r.split for r in split.records}
    put(tmp_path, "new/a.mp4", "000b.mp4")
    (tmp_path / "005.mp4").rename(tmp_path / "zzz.mp4")
    after = {r.id: r.split for r in ClipSource.open(tmp_path).with_splits(val=0.1, test=0.2).records}
    assert all(after[i] == where[i] for i in where)
    assert len(source.split("train")) == sizes["train"]  # split() makes the same splits by itself


def test_small_sets_have_every_split(tmp_path):
    for n in range(3, 12):
        put(tmp_path, f"{n}.mp4", "a.mp4", "b.mp4")
        assert set(ClipSource.open(tmp_path).with_splits().splits) == {"train", "val", "test"}
