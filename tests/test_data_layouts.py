"""Published data sets in small: trees made in their layout, their splits, what is missing, and what does not fit."""

from __future__ import annotations

import pytest
from data_fixtures import plain_clip

pytest.importorskip("av", reason="making media needs PyAV")

from avfast.data.layouts import EMOTIONS, LAYOUTS, open_layout  # noqa: E402
from avfast.engine.sources import open_data  # noqa: E402
from avfast.errors import DataError  # noqa: E402


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """One real clip; copies of it with other trailing bytes stand for different files."""
    return plain_clip(tmp_path_factory.mktemp("media") / "clip.mp4", seconds=1.0).read_bytes()


class Tree:
    def __init__(self, root, media) -> None:
        self.root, self.media, self.count = root, media, 0

    def clip(self, path: str) -> None:
        self.count += 1
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.media + b"\0" * self.count)

    def text(self, path: str, *lines: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def tree(tmp_path, media):
    return Tree(tmp_path, media)


def found(source) -> dict[str, tuple[str, str]]:
    return {record.path.stem: (record.label, record.split) for record in source.records}


def test_kinetics_and_its_subsets(tree):
    head = "label,youtube_id,time_start,time_end,split"
    tree.text("annotations/train.csv", head, "playing harp,a-_1,5,15,train", "singing,gone,0,10,train")
    tree.text("annotations/val.csv", head, "singing,b2,0,10,val")
    tree.text("annotations/test.csv", head, "singing,c3,100,110,test")
    for path in ("train/playing harp/a-_1_000005_000015.mp4", "val/singing/b2_000000_000010.mp4",
                 "test/singing/c3_000100_000110.mp4"):  # fmt: skip
        tree.clip(path)
    source = open_layout("kinetics", tree.root)
    assert found(source) == {
        "a-_1_000005_000015": ("playing harp", "train"), "b2_000000_000010": ("singing", "val"),
        "c3_000100_000110": ("singing", "test"),
    }  # fmt: skip
    assert source.missing == 1 and source.classes == ("playing harp", "singing")


def test_vggsound_deals_a_validation_split_by_video(tree):
    lines = []
    for i in range(60):
        for start in (0, 10):
            lines.append(f'id{i:02d},{start},"people, shouting",{"test" if i >= 50 else "train"}')
            tree.clip(f"video/id{i:02d}_{start:06d}.mp4")
    tree.text("vggsound.csv", *lines)
    source = open_layout("vggsound", tree.root)
    splits = {}
    for stem, (label, split) in found(source).items():
        assert label == "people, shouting"
        splits.setdefault(stem[:4], set()).add(split)
    assert all(len(names) == 1 for names in splits.values()), "a video is in one split"
    assert source.splits["test"] == 20 and 2 <= source.splits["val"] <= 20
    again = open_layout("vggsound", tree.root)
    assert found(again) == found(source) and again.fingerprint == source.fingerprint


def test_crema_d_is_divided_by_actor(tree):
    for actor in range(1001, 1092):
        for emotion in list(EMOTIONS)[actor % 3 :: 3]:
            tree.clip(f"VideoFlash/{actor}_DFA_{emotion}_XX.flv")
    source = open_layout("crema-d", tree.root)
    assert source.classes == tuple(sorted(EMOTIONS.values())) and set(source.splits) == {"train", "val", "test"}
    actors = {name: {s[:4] for s, (_, split) in found(source).items() if split == name} for name in source.splits}
    assert not actors["train"] & actors["test"] and not actors["train"] & actors["val"]
    assert {name: len(group) for name, group in actors.items()} == {"train": 71, "val": 9, "test": 11}
    tree.clip("VideoFlash/1001_DFA_BAD_XX.flv")
    with pytest.raises(DataError, match="1001_DFA_BAD_XX.*expected a name such as 1001_DFA_ANG_XX"):
        open_layout("crema-d", tree.root)


def test_crema_d_by_the_lists_of_ogm_ge(tree):
    stems = [f"{actor}_IEO_{emotion}_HI" for actor in range(1001, 1031) for emotion in ("ANG", "SAD")]
    for stem in (*stems, "1090_IEO_ANG_LO"):
        tree.clip(f"VideoFlash/{stem}.flv")
    tree.text("train.csv", *(f"{s},{s[9:12]}" for s in stems[:50]))
    tree.text("test.csv", *(f"{s},{s[9:12]}" for s in stems[50:]))
    rows = found(open_layout("crema-d", tree.root))
    assert {s for s, (_, split) in rows.items() if split == "test"} == set(stems[50:])
    assert {s for s, (_, split) in rows.items() if split in ("train", "val")} == set(stems[:50])


def test_kinetics_sounds_by_the_lists_of_ogm_ge(tree):
    tree.text("my_train.txt", "-3Mw_q-7T_2,10,23", "b_74csn_12,10,4", "gone_0,10,0")
    tree.text("my_test.txt", "-9nQwLUdlJo_0,10,5")
    tree.clip("train/-3Mw_q-7T_2.mp4")
    tree.clip("train/playing harp/b_74csn_000012_000022.mp4")  # as Kinetics calls it
    tree.clip("test/-9nQwLUdlJo_0.mp4")
    source = open_layout("kinetics-sounds", tree.root)
    rows = found(source)
    assert rows["-9nQwLUdlJo_0"] == ("05", "test") and rows["b_74csn_000012_000022"][0] == "04"
    assert source.classes == ("04", "05", "23") and source.missing == 1
    for line, message in (("a_1,10", "expected id_start"), ("a_x,10,3", "start: expected seconds, got 'x'")):
        tree.text("my_test.txt", line)
        with pytest.raises(DataError, match=f"my_test.txt: line 1: {message}"):
            open_layout("kinetics-sounds", tree.root)


def test_vggsound_without_padded_seconds(tree):
    tree.text("vggsound.csv", "a-_1,30,dog,train", "b,5,cat,test")
    tree.clip("a-_1_30.mp4")
    tree.clip("b_000005.mp4")
    assert set(found(open_layout("vggsound", tree.root))) == {"a-_1_30", "b_000005"}


def test_ave(tree):
    head = "Category&VideoID&Quality&StartTime&EndTime"
    tree.text("trainSet.txt", head, "Church bell&RUhOCu3LNXM&good&0&10", "Male speech&x-1&good&2&9")
    tree.text("valSet.txt", "Church bell&v_2&good&0&10")
    tree.text("testSet.txt", "Male speech&t3&good&0&10")
    for name in ("RUhOCu3LNXM", "x-1", "v_2", "t3"):
        tree.clip(f"AVE/{name}.mp4")
    source = open_layout("ave", tree.root)
    assert source.splits == {"train": 2, "val": 1, "test": 1} and found(source)["x-1"] == ("Male speech", "train")
    tree.text("testSet.txt", "Male speech&t3&good")
    with pytest.raises(DataError, match="testSet.txt: line 1: expected Category&VideoID"):
        open_layout("ave", tree.root)


def test_esc50_holds_fold_five_out_and_keeps_sources_together(tree):
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for i in range(40):
        for take in "AB":
            lines.append(f"{i % 5 + 1}-{i}-{take}-0.wav,{i % 5 + 1},0,{'dog' if i % 2 else 'rain'},False,{i},{take}")
            tree.clip(f"audio/{i % 5 + 1}-{i}-{take}-0.wav")
    tree.text("meta/esc50.csv", *lines)
    source = open_layout("esc50", tree.root)
    rows = found(source)
    assert all((split == "test") == stem.startswith("5-") for stem, (_, split) in rows.items())
    assert all(rows[s.replace("-A-", "-B-")][1] == split for s, (_, split) in rows.items() if "-A-" in s)
    assert source.splits["val"] > 0


def test_ucf101(tree):
    tree.text("ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup", "2 Archery")
    train = [f"Archery/v_Archery_g{g:02d}_c{c:02d}.avi" for g in range(8, 26) for c in (1, 2)]
    tree.text("ucfTrainTestlist/trainlist01.txt", *(f"{name} 2" for name in train))
    tree.text("ucfTrainTestlist/testlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi")
    for name in (*train, "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"):
        tree.clip(f"UCF-101/{name}")
    source = open_layout("ucf101", tree.root)
    rows = found(source)
    assert rows["v_ApplyEyeMakeup_g01_c01"] == ("ApplyEyeMakeup", "test") and source.splits["test"] == 1
    assert all(rows[f"v_Archery_g{g:02d}_c01"] == rows[f"v_Archery_g{g:02d}_c02"] for g in range(8, 26))
    tree.text("ucfTrainTestlist/testlist01.txt", "Dancing/v_Dancing_g01_c01.avi")
    with pytest.raises(DataError, match="class 'Dancing' is not in classInd.txt"):
        open_layout("ucf101", tree.root)


def test_training_opens_them_by_name(tree):
    tree.text("vggsound.csv", *(f"id{i},0,{'dog' if i % 2 else 'cat'},train" for i in range(12)))
    for i in range(12):
        tree.clip(f"id{i}_000000.mp4")
    bundle = open_data(f"vggsound:{tree.root}")
    assert bundle.labelled and bundle.source.classes == ("cat", "dog")
    sample = bundle.splits["train"].records[0]
    assert sample.path.is_file() and len(sample.id) == 64


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_that_holds_something_else(name, tmp_path):
    with pytest.raises(DataError, match=f"no {name} in the published layout: looked for"):
        open_layout(name, tmp_path)


def test_mistakes(tree):
    with pytest.raises(DataError, match="layout 'audioset': expected one of kinetics, kinetics-sounds"):
        open_layout("audioset", tree.root)
    tree.text("vggsound.csv", "id0,0,dog,train")
    with pytest.raises(
        DataError, match="none of the 1 clips that vggsound lists is on the disk, for instance 'id0_000000'"
    ):
        open_layout("vggsound", tree.root)
    for line, message in (("id0,0,dog", "got 3 fields"), ("id0,soon,dog,train", "start: expected seconds, got 'soon'"),
                          ("id0,0,dog,dev", "split: expected one of train, val")):  # fmt: skip
        tree.text("vggsound.csv", line)
        with pytest.raises(DataError, match=f"vggsound.csv: line 1: .*{message}"):
            open_layout("vggsound", tree.root)


def test_names_in_lists_cannot_leave_the_folder(tree):
    """Lists name stems, which are looked up among the files below the folder, never joined to a path."""
    outside = tree.root.parent / "secret.mp4"
    outside.write_bytes(tree.media)
    tree.text("trainSet.txt", "Dog&../secret&good&0&10", "Dog&inside&good&0&10")
    tree.text("valSet.txt", "Cat&v&good&0&10")
    tree.text("testSet.txt", "Cat&t&good&0&10")
    for name in ("inside", "v", "t"):
        tree.clip(f"{name}.mp4")
    source = open_layout("ave", tree.root)
    assert source.missing == 1 and all(tree.root in record.path.parents for record in source.records)
