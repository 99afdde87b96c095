"""Tar shards: the same samples as a folder, read where they lie; and everything a bad tar file can hold."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import tarfile

import numpy as np
import pytest
from data_fixtures import CLIPS, demo_dir, plain_clip  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_fixtures import sample, special, tar

from avfast.data.brace import expand_braces
from avfast.data.identity import content_id, file_sha256
from avfast.data.index_files import FOLDER
from avfast.data.lists import leaves
from avfast.data.members import Member, opened
from avfast.data.shard_writer import parse_size, write_shards
from avfast.data.sources import IMAGE_EXTENSIONS, ClipSource
from avfast.data.tar import DamagedTar, HostileTar, tar_members
from avfast.errors import ConfigError, DataError, UnreadableFile

# ---------------------------------------------------------------------------------------- the tar format itself

NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), min_size=1, max_size=130)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
)
def test_members_are_those_that_tarfile_finds(tmp_path, members, format):
    """Long names, names in other alphabets, empty files: whatever Python writes is read as Python reads it."""
    members = [(name, data) for name, data in members if name != "." and not leaves(name)]
    path = tmp_path / "x.tar"
    try:
        tar(path, *members, format=format)
    except ValueError:  # ustar has no long names
        return
    with tarfile.open(path) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file if m.isreg()]
    assert [(m.name, m.offset, m.size) for m in tar_members(path)] == expected


def test_folders_are_passed_over_and_dots_taken_off(tmp_path):
    path = tar(tmp_path / "x.tar", special("./dog", tarfile.DIRTYPE), ("./dog/1.mp4", b"x"))
    assert [m.name for m in tar_members(path)] == ["dog/1.mp4"]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("/etc/passwd.mp4", b"x"), "leaves the archive"),
        (("a/../../x.mp4", b"x"), "leaves the archive"),
        (("C:\\x.mp4", b"x"), "leaves the archive"),
        (("/" + "x" * 5000 + "\n.mp4", b"x"), "…"),
        (special("x.mp4", tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link"),
        (special("x.mp4", tarfile.LNKTYPE, "a.mp4"), "a hard link"),
        (special("x.mp4", tarfile.CHRTYPE), "a device"),
        (special("x.mp4", tarfile.BLKTYPE), "a device"),
        (special("x.mp4", tarfile.FIFOTYPE), "a pipe"),
        (special("x.mp4", tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (special("x.mp4", b"Z"), "unknown type b'Z'"),
    ],
)
def test_what_no_honest_shard_holds_is_refused_by_name(tmp_path, member, message):
    path = tar(tmp_path / "x.tar", ("a.mp4", b"good"), member)
    with pytest.raises(HostileTar, match=re.escape(message)):
        list(tar_members(path))
    for damaged in ("raise", "drop"):  # whatever the policy
        with pytest.raises(DataError, match=r"x\.tar: refused, because it holds"):
            ClipSource.open(path, damaged=damaged)
    assert sorted(p.name for p in tmp_path.iterdir()) == [FOLDER, "x.tar"], "nothing is unpacked"
    assert not list((tmp_path / FOLDER).iterdir()), "and nothing remembered"


def test_pax_records_cannot_smuggle(tmp_path):
    """The real name and length of a member may stand in pax records; they are held to the same rules."""
    info = tarfile.TarInfo("ok.mp4")
    info.pax_headers = {"path": "/etc/x.mp4"}
    with pytest.raises(HostileTar, match="leaves the archive"):
        list(tar_members(tar(tmp_path / "x.tar", info)))
    info = tarfile.TarInfo("ok.mp4")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    with pytest.raises(HostileTar, match="sparse"):
        list(tar_members(tar(tmp_path / "x.tar", info)))
    info = tarfile.TarInfo("ok.mp4")
    info.pax_headers = {"size": str(2**62)}
    with pytest.raises(DamagedTar, match="ends at byte"):
        list(tar_members(tar(tmp_path / "x.tar", info)))


def header(name: bytes = b"a.mp4", size: bytes = b"00000000004\0", kind: bytes = b"0") -> bytes:
    """A ustar header with any bytes as its length, and a right sum."""
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157], block[257:265] = name, size, kind, b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (b"77777777777\0", "of 8589934591 bytes"),
        (b"\x80" + struct.pack(">xxxq", 2**62), "ends at byte"),
        (b"\xff" * 12, "a negative length"),  # tarfile of Python 3.11 follows this one backwards for ever
        (b"notanumber\0\0", "a length that is no number"),
    ],
)
def test_lengths_that_cannot_be(tmp_path, size, message):
    (tmp_path / "x.tar").write_bytes(header(size=size) + b"data" + bytes(508 + 1024))
    with pytest.raises(DamagedTar, match=message):
        list(tar_members(tmp_path / "x.tar"))


@pytest.mark.parametrize("kind", [b"L", b"x", b"g", b"K"])
def test_a_name_of_gigabytes_is_not_read(tmp_path, kind):
    (tmp_path / "x.tar").write_bytes(header(size=b"77777777777\0", kind=kind) + bytes(2048))
    with pytest.raises(DamagedTar, match="of names"):
        list(tar_members(tmp_path / "x.tar"))


def shard(folder, count=6, **options):
    return tar(folder / "x.tar", *[f for i in range(count) for f in sample(f"{i:03d}", label=f"c{i % 2}")], **options)


@pytest.mark.parametrize("where", ["in a file", "in a header", "at the end mark", "between members"])
def test_cut_off_shards(tmp_path, where):
    path = shard(tmp_path)
    members = list(tar_members(path))
    third = members[4]  # the clip of the third sample
    cut = {"in a file": third.offset + 3, "in a header": third.offset - 100, "between members": third.offset - 512,
           "at the end mark": members[-1].offset + 512}[where]  # fmt: skip
    with open(path, "r+b") as file:
        file.truncate(cut)
    with pytest.raises(DataError, match=r"x\.tar: .*(ends at byte|cut off).*data.on_error=skip"):
        ClipSource.open(path)
    source = ClipSource.open(path, damaged="drop")
    assert [r.path.name for r in source.records] == [
        f"{i:03d}.mp4" for i in range(6 if where == "at the end mark" else 2)
    ]
    assert "x.tar" in source.notes[0] and f"the {len(source)} samples before that are used" in source.notes[0]
    again = ClipSource.open(path, damaged="drop")
    assert again == source and again.notes == source.notes, "the index remembers the damage"


def test_a_flipped_bit_in_a_header_is_found(tmp_path):
    path = shard(tmp_path)
    at = list(tar_members(path))[6].offset - 512
    data = bytearray(path.read_bytes())
    for bit in range(0, 8 * 500, 97):
        bad = bytearray(data)
        bad[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        if not 148 <= bit // 8 < 156:  # within the sum, a space may turn into another separator
            with pytest.raises(DamagedTar, match=f"damaged header at byte {at}"):
                list(tar_members(path))
    path.write_bytes(data + data)
    with pytest.raises(DamagedTar, match="behind its end mark"):
        list(tar_members(path))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_mutation_crashes_hangs_or_reads_outside(tmp_path, data):
    path = shard(tmp_path)
    bad = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bad[: data.draw(st.integers(0, len(bad)))])
    try:
        source = ClipSource.open(path, damaged="drop")
    except DataError as error:
        assert "x.tar" in str(error) or "shards hold no files" in str(error)
        return
    size = path.stat().st_size
    for record in source.records:
        assert 0 <= record.path.offset <= record.path.offset + record.path.size <= size
        assert len(record.id) == 64


# ------------------------------------------------------------------------------------------------------ samples


def test_samples_are_files_of_one_stem(tmp_path):
    files = (
        ("b/x.1.mp4", b"clip of x"), ("b/x.cls", b"3\n"), ("b/x.txt", b"a caption"), ("b/x.jpg", b"thumb"),
        *sample("a/y", "MKV", label="cat", split="valid", duration=2.5), ("__meta__.json", b"{}"),
        (".hidden.mp4", b"?"),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"holds two clips or pictures of one stem: 'b/x.1.mp4', 'b/x.2.mp4'"):
        ClipSource.open(tar(tmp_path / "s.tar", *files, ("b/x.2.mp4", b"other")))
    with pytest.raises(DataError, match=r"refused, because it holds 'b/x.cls' twice"):
        ClipSource.open(tar(tmp_path / "s.tar", *files, ("b/x.cls", b"4")))
    source = ClipSource.open(tar(tmp_path / "s.tar", *files))
    assert [(str(r.path.member), r.label, r.split, r.duration) for r in source.records] == [
        ("a/y.MKV", "cat", "val", 2.5), ("b/x.1.mp4", "3", None, None)
    ]  # fmt: skip
    with opened(source.records[1].path) as file:
        assert file.read() == b"clip of x"
    pictures = ClipSource.open(tmp_path / "s.tar", extensions=IMAGE_EXTENSIONS)
    assert [r.path.name for r in pictures.records] == ["x.jpg"] and "1 of 2 samples" in pictures.notes[0]


def test_folders_in_shards_are_classes_and_names_of_shards_are_splits(tmp_path):
    for name in ("train-0", "train-1", "val-0"):
        tar(tmp_path / f"{name}.tar", *((f"{c}/{name}.mp4", f"{c} {name}".encode()) for c in ("cat", "dog")))
    source = ClipSource.open(tmp_path)
    assert source.classes == ("cat", "dog") and source.splits == {"train": 4, "val": 2}
    assert [r.split for r in source.records] == ["train", "train", "val"] * 2, "in the order of names, shard or not"
    (tmp_path / "val-0.tar").rename(tmp_path / "other.tar")
    assert ClipSource.open(tmp_path).splits == {}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((("a.mp4", b"x"), ("a.json", b"{")), r"s.tar/a.json: cannot be read as JSON"),
        ((("a.mp4", b"x"), ("a.json", b"[" * 100_000)), r"s.tar/a.json: cannot be read as JSON"),
        ((("a.mp4", b"x"), ("a.json", b'{"duration": -1}')), r"a.json: duration: expected seconds, got -1"),
        ((("a.mp4", b"x"), ("a.cls", b"\xff\xfe")), r"a.cls: is no text"),
        ((("a.mp4", b"x"), ("a.cls", bytes(1 << 21))), r"a.cls: has 2,097,152 bytes; expected at most"),
        ((("a.txt", b"x"),), r"the shards hold no files such as .mp4"),
        ((), r"the shards hold no files such as .mp4"),
    ],
)
def test_bad_samples_say_what_is_wrong(tmp_path, files, message):
    tar(tmp_path / "s.tar", *files)
    with pytest.raises(DataError, match=message):
        ClipSource.open(tmp_path)


def test_which_words_name_shards(tmp_path):
    shard(tmp_path)
    for i in range(12):
        shutil.copy(tmp_path / "x.tar", tmp_path / f"s-{i:02d}.tar")
    assert len(ClipSource.open(f"wds:{tmp_path}/s-{{00..11}}.tar")) == 72
    assert len(ClipSource.open(f"{tmp_path}/s-{{00,03}}.tar")) == 12
    assert len(ClipSource.open(f"wds:{tmp_path}")) == len(ClipSource.open(tmp_path)) == 78
    with pytest.raises(DataError, match=r"2 of 14 shards do not exist \(first: .*s-12.tar"):
        ClipSource.open(f"{tmp_path}/s-{{00..13}}.tar")
    some = ClipSource.open(f"{tmp_path}/s-{{00..13}}.tar", missing="drop")
    assert len(some) == 72 and some.missing == 2
    (tmp_path / "z.tar.gz").write_bytes(b"x")
    for word in (tmp_path, f"wds:{tmp_path}", tmp_path / "z.tar.gz"):
        with pytest.raises(DataError, match=r"z.tar.gz: compressed shards cannot be read in any order; unpack it"):
            ClipSource.open(word)
    with pytest.raises(DataError, match="/no/such: no such file or folder"):
        ClipSource.open("wds:/no/such")
    with pytest.raises(DataError, match="streams cannot be read"):
        ClipSource.open("wds:pipe:curl x")
    with pytest.raises(DataError, match="holds no .tar files"):
        ClipSource.open(f"wds:{tmp_path / FOLDER}")
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    assert len(ClipSource.open(tmp_path)) == 1, "media beside an archive are a folder of media"


def test_braces():
    assert expand_braces("a-{8..10}-{x,y}") == [f"a-{i}-{c}" for i in (8, 9, 10) for c in "xy"]
    for bad, message in (("{a}", "expected a range"), ("{9..1}", "low to high"), ("{0..9999999}", "at most"),
                         ("{0..999}{0..999}{0..9}", "at most 1,000,000")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            expand_braces(bad)


# ------------------------------------------------------------------------------------------------ ids and index


def test_ids_are_of_the_content_wherever_it_lies(tmp_path):
    small, large = os.urandom(1 << 20), os.urandom((1 << 20) + 1)
    for name, data in (("a.mp4", small), ("b.mp4", large)):
        (tmp_path / name).write_bytes(data)
    folder = ClipSource.open(tmp_path)
    assert [r.id for r in folder.records] == [content_id(tmp_path / n) for n in ("a.mp4", "b.mp4")]
    assert folder.records[0].id == file_sha256(tmp_path / "a.mp4")
    (tmp_path / "s").mkdir()
    tar(tmp_path / "s" / "s.tar", ("x/b.mp4", large), ("x/a.mp4", small))
    shards = ClipSource.open(tmp_path / "s")
    assert [r.id for r in shards.records] == [r.id for r in folder.records]
    assert shards.fingerprint == folder.fingerprint
    # Of a large file the ends and the length are looked at, and that is all.
    middle = bytearray(large)
    middle[500_000] ^= 1
    ends = {content_id_of(tmp_path, data) for data in (large, bytes(middle))}
    others = {content_id_of(tmp_path, data) for data in (large + b"\0", b"\0" + large[1:], large[:-1] + b"\0")}
    assert len(ends) == 1 and len(ends | others) == 4


def content_id_of(folder, data):
    (folder / "probe").write_bytes(data)
    return content_id(folder / "probe")


def test_a_shard_is_read_once_until_it_changes(tmp_path, monkeypatch):
    import avfast.data.shards as shards

    for name in "ab":
        tar(tmp_path / f"{name}.tar", *sample(f"{name}1"), *sample(f"{name}2"))
    looked = []
    real = shards.index_shard
    monkeypatch.setattr(shards, "index_shard", lambda path, e: looked.append(path.name) or real(path, e))
    first = ClipSource.open(tmp_path)
    assert sorted(looked) == ["a.tar", "b.tar"]
    looked.clear()
    assert ClipSource.open(tmp_path) == first and not looked
    tar(tmp_path / "b.tar", *sample("b1"), *sample("b3"))
    tar(tmp_path / "c.tar", *sample("c1"))
    assert len(ClipSource.open(tmp_path)) == 5 and sorted(looked) == ["b.tar", "c.tar"]
    # An index may be damaged, or say what is not true of the shard.
    looked.clear()
    for index in (tmp_path / FOLDER).glob("*.npz"):
        with np.load(index) as file:
            arrays = dict(file)
        if "offset" in arrays:
            np.savez(index, **arrays | {"offset": arrays["offset"] + 10**9})
    assert len(ClipSource.open(tmp_path)) == 5 and sorted(set(looked)) == ["a.tar", "b.tar", "c.tar"]


def test_a_shard_that_changes_while_it_is_used_is_noticed(tmp_path):
    path = shard(tmp_path)
    record = ClipSource.open(path).records[0]
    os.utime(path, (1, 1))
    with pytest.raises(UnreadableFile, match="changed since it was indexed") as caught:
        record.path.open()
    assert caught.value.cause == "changed"
    path.unlink()
    with pytest.raises(UnreadableFile, match="cannot be opened"):
        record.path.open()


def test_a_member_reads_like_a_file_of_its_own(tmp_path):
    (tmp_path / "s").write_bytes(b"0123456789")
    member = Member(tmp_path / "s", "dir/x.bin", 2, 5)
    assert (member.name, member.stem, member.suffix) == ("x.bin", "x", ".bin")
    with member.open() as raw, io.BytesIO(b"23456") as plain:
        for seek in ((1, 0), (-2, 2), (1, 1), (99, 0), (0, 0)):
            assert raw.seek(*seek) == plain.seek(*seek) and raw.read(3) == plain.read(3) and raw.tell() == plain.tell()
        assert raw.read() == plain.read()
        with pytest.raises(OSError):
            raw.seek(-1)
    assert raw.closed


# ----------------------------------------------------------------------------------------- media out of shards


@pytest.fixture(scope="module")
def packed(demo_dir, tmp_path_factory):  # noqa: F811
    pytest.importorskip("av", reason="reading media needs PyAV")
    folder = tmp_path_factory.mktemp("packed")
    source = ClipSource.open(demo_dir)
    shards = write_shards(source, folder, size=200_000)
    assert len(shards) > 4 and {s.name.split("-")[0] for s in shards} == {"train", "val", "test"}
    return folder


def test_packing_changes_nothing_that_training_sees(packed, demo_dir):  # noqa: F811
    """The same fingerprint, and the same samples bit for bit, augmented ones too."""
    import torch

    from avfast.data import ClipDataset, EpochSampler, build_loader

    ask = {"frames": 2, "size": 32, "duration": 1.0, "sample_rate": 16000, "seed": 1, "train": True}
    batches = []
    for path in (demo_dir, packed):
        source = ClipSource.open(path)
        data = ClipDataset(source.split("train"), **ask)
        sampler = EpochSampler(len(data), seed=0, batch_size=4)
        batches.append((source.fingerprint, list(build_loader(data, sampler, workers=2))))
    (one, first), (two, second) = batches
    assert one == two and len(first) == len(second) > 1
    for a, b in zip(first, second, strict=True):
        assert a["id"] == b["id"] and torch.equal(a["frames"], b["frames"])
        assert torch.equal(a["waveform"], b["waveform"]) and torch.equal(a["label"], b["label"])


def test_webdataset_reads_what_we_write_and_we_what_it_writes(packed, tmp_path, demo_dir):  # noqa: F811
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed (only this test needs it)")
    names = [str(path) for path in sorted(packed.glob("*.tar"))]
    theirs = {s["__key__"]: s for s in wds.WebDataset(names, shardshuffle=False)}
    ours = ClipSource.open(packed)
    assert len(theirs) == len(ours) == CLIPS
    for record in ours.records:
        got = theirs[record.path.member.partition(".")[0]]
        with opened(record.path) as file:
            assert got["mp4"] == file.read()
        assert json.loads(got["json"])["label"] == record.label
    with wds.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=5, verbose=0) as writer:
        for record in ours.records:
            with opened(record.path) as file:
                stem = record.path.stem
                writer.write({"__key__": stem, "mp4": file.read(), "cls": ours.classes.index(record.label)})
    back = ClipSource.open(f"wds:{tmp_path}/w-{{000..{(CLIPS - 1) // 5:03d}}}.tar")
    assert sorted(r.id for r in back.records) == sorted(r.id for r in ours.records)
    assert {r.id: int(r.label) for r in back.records} == {r.id: ours.classes.index(r.label) for r in ours.records}


def test_media_scan_looks_into_shards(tmp_path, capsys, demo_dir):  # noqa: F811
    pytest.importorskip("av", reason="reading media needs PyAV")
    from avfast.cli import main
    from avfast.data.scan import scan_media

    plain_clip(tmp_path / "good.mp4")
    good, muted = ((p.read_bytes()) for p in (tmp_path / "good.mp4", demo_dir / "faults" / "muted.mp4"))
    (tmp_path / "good.mp4").unlink()
    files = (("a.mp4", good), ("b.mp4", good[: len(good) // 3]), ("c.mp4", b"no media"), ("d.mp4", muted))
    tar(tmp_path / "s.tar", *files)
    report = scan_media(tmp_path)
    assert {f.path: f.problems for f in report.files if f.problems} == {
        "s.tar/b.mp4": ("unreadable",), "s.tar/c.mp4": ("unreadable",), "s.tar/d.mp4": ("muted",)
    }  # fmt: skip
    assert scan_media(tmp_path).cached == 4
    assert main(["media-scan", f"wds:{tmp_path}/s.tar"]) == 1
    assert "1 of 4 files usable" in " ".join(capsys.readouterr().out.split())
    tar(tmp_path / "s.tar", *files[:1])
    assert main(["media-scan", str(tmp_path / "s.tar")]) == 0


def test_a_broken_clip_in_a_shard_follows_the_policy(tmp_path):
    pytest.importorskip("av", reason="reading media needs PyAV")
    from avfast.data import ClipDataset

    clip = plain_clip(tmp_path / "x.mp4").read_bytes()
    (tmp_path / "x.mp4").unlink()
    path = tar(tmp_path / "s.tar", ("a.mp4", clip), ("b.mp4", b"no media"))
    ask = {"frames": 1, "size": 16, "duration": 1.0, "sample_rate": 16000, "seed": 0, "train": False}
    source = ClipSource.open(path)
    assert ClipDataset(source, **ask)[0, 0]["frames"].shape == (1, 3, 16, 16)
    with pytest.raises(DataError, match=r"s\.tar/b\.mp4: cannot be read"):
        ClipDataset(source, **ask)[0, 1]
    sample = ClipDataset(source, **ask, on_error="resample")[0, 1]
    assert sample["index"] == 0 and sample["errors"][0]["path"].endswith("s.tar/b.mp4")
    os.utime(path, (1, 1))
    assert ClipDataset(source, **ask, on_error="skip")[0, 0]["errors"][0]["cause"] == "changed"


# ---------------------------------------------------------------------------------------------------- the writer


def test_the_command_packs_a_folder(tmp_path, capsys):
    from avfast.cli import main

    for name in ("cat/a.b.mp4", "cat/a_b.mp4", "dog/a.mp4", "dog/copy.mp4"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"same" if name.startswith("dog") else name.encode())
    out = tmp_path / "out"
    assert main(["shards", str(tmp_path / "data"), str(out), "--size", "1kB"]) == 0
    said = capsys.readouterr().out
    assert "4 clips in 4 shards" in said and f"--data {out}" in said
    one, two = ClipSource.open(tmp_path / "data"), ClipSource.open(out)
    assert one.fingerprint == two.fingerprint and two.classes == ("cat", "dog")
    assert [r.path.member for r in two.records][1:] == [
        "cat/a_b_" + one.records[1].id[:16] + ".mp4",
        "dog/a.mp4",
        "dog/copy.mp4",
    ]
    assert main(["shards", str(tmp_path / "data"), str(out)]) == 2
    assert "holds shards already" in capsys.readouterr().err
    assert main(["shards", str(tmp_path / "data"), str(tmp_path / "o"), "--size", "big"]) == 2
    assert "--size: expected a size such as 500MB" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        parse_size("10")


def test_a_file_that_vanishes_while_packing_leaves_no_half_shard(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    source = ClipSource.open(tmp_path)
    (tmp_path / "b.mp4").unlink()
    with pytest.raises(DataError, match="b.mp4: cannot be packed"):
        write_shards(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
