"""Confidences by sample key: running means, checkpoints, files, ratios, and two processes."""

from __future__ import annotations

import json
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from avfast.errors import ConfigError
from avfast.nn.confidences import Confidences
from avfast.ops._counter import content_key
from avfast.ops.mask_ratio import mask_ratio


def test_means_follow_the_key_not_the_order():
    one, other = Confidences(), Confidences()
    keys, values = torch.tensor([3, -5, 7]), torch.tensor([0.25, 0.5, 1.0])
    for seen, order in ((one, [0, 1, 2]), (other, [2, 0, 1])):
        for _ in range(2):
            seen.note(keys[order], values[order])
        seen.note(torch.tensor([7]), torch.tensor([0.25]))
    assert one.means() == other.means() == {3: 0.25, -5: 0.5, 7: 0.75}
    assert Confidences.of(one.state()).means() == one.means()
    assert Confidences.of(Confidences().state()).means() == {}


def write(path, means):
    path.write_text(json.dumps({"confidence": means}))
    return path


def test_ratios_by_clip_and_by_mean(tmp_path):
    audio, video = {"x": 0.9, "y": 0.2, "z": 0.6}, {"y": 0.8, "x": 0.6, "other": 0.1}
    both = Confidences.read(write(tmp_path / "a.json", audio), write(tmp_path / "v.json", video))
    keys = torch.tensor([content_key(id) for id in ("y", "z", "x")])  # z is known to one stream only
    of = mask_ratio
    ratio_a, ratio_v = both.ratios(keys, mean=False, of=of)
    want_a, want_v = mask_ratio(torch.tensor([0.2, 0.9]), torch.tensor([0.8, 0.6]))
    torch.testing.assert_close(ratio_a, torch.stack([want_a[0], torch.zeros(()), want_a[1]]))
    torch.testing.assert_close(ratio_v, torch.stack([want_v[0], torch.zeros(()), want_v[1]]))
    assert ratio_a[2] > 0
    mean_a, mean_v = both.ratios(keys, mean=True, of=of)
    torch.testing.assert_close(mean_a, want_a.mean().expand(3))
    torch.testing.assert_close(mean_v, want_v.mean().expand(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no file of confidences"), ("{}", "is no file of confidences"), ('{"confidence": [1]}', "no file"),
     ('{"confidence": {"x": 1.5}}', r"expected confidences in \[0, 1\]"),
     ('{"confidence": {"x": "high"}}', r"expected confidences in \[0, 1\]"),
     ('{"confidence": {"q": 0.5}}', "no sample in common")],
)  # fmt: skip
def test_files_that_are_something_else(tmp_path, text, message):
    good, bad = write(tmp_path / "good.json", {"x": 0.5}), tmp_path / "bad.json"
    bad.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Confidences.read(good, bad)


def worker(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    seen = Confidences()
    for step in range(2):  # of unlike sizes: a broken file leaves a batch smaller
        keys = torch.arange(3 + rank) + 10 * rank
        seen.note(keys, torch.full((3 + rank,), 0.25 * (step + 1)))
    torch.save(seen.state(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_every_process_knows_all(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo backend")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    found = [Confidences.of(torch.load(tmp_path / f"{rank}.pt")).means() for rank in range(2)]
    assert found[0] == found[1] == dict.fromkeys([0, 1, 2, 10, 11, 12, 13], 0.375)
