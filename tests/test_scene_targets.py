"""The table of frame features: found by content, kept on disk, refused where it does not fit."""

from __future__ import annotations

import pytest
import torch

from avfast.errors import ConfigError
from avfast.nn.scene_targets import SceneTargets

pytest.importorskip("safetensors", reason="safetensors is not installed")


def table(n=5, frames=3, dim=4) -> SceneTargets:
    generator = torch.Generator().manual_seed(0)
    keys = torch.arange(10, 10 + n)
    return SceneTargets(
        keys, torch.randn(n, frames, dim, generator=generator), torch.randn(n, frames, generator=generator), {"a": "b"}
    )


def test_features_are_found_by_key_in_any_order():
    made = table()
    keys, frame = torch.tensor([14, 10, 14]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(made.of(keys, frame), made.features[[4, 0, 4], [2, 0, 1]])
    assert len(made) == 5 and made.frames == 3 and made.dim == 4


def test_a_clip_of_other_data_is_an_error():
    with pytest.raises(ConfigError, match="1 of 2 clips are not among the 5"):
        table().rows(torch.tensor([10, 99]))


def test_what_is_written_is_read(tmp_path):
    made, path = table(), tmp_path / "t.safetensors"
    made.save(path)
    read = SceneTargets.read(path)
    assert read.facts == {"a": "b"}
    many = SceneTargets(made.keys, made.features, made.scores, {name: name for name in "abcdefgh"})
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file in files:
        many.save(file)
    assert len({file.read_bytes() for file in files}) == 1, "equal tables are equal files"
    for name in ("keys", "features", "scores"):
        assert torch.equal(getattr(read, name), getattr(made, name))


@pytest.mark.parametrize("content", [b"", b"not a table"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="t.safetensors' cannot be read"):
        SceneTargets.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        SceneTargets.read(tmp_path / "none.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="expected keys, features, scores, got weight"):
        SceneTargets.read(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2)}, "keys: expected 1 dimensions of torch.int64"),
        ({"features": torch.zeros(2, 4)}, "features: expected 3 dimensions"),
        ({"scores": torch.zeros(2, 5)}, "expected keys \\[N\\], features \\[N, T, D\\], scores \\[N, T\\]"),
        ({"features": torch.full((2, 3, 4), torch.nan)}, "expected finite numbers"),
        ({"keys": torch.zeros(0, dtype=torch.int64), "features": torch.zeros(0, 3, 4), "scores": torch.zeros(0, 3)},
         "expected keys"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(change, message):
    given = {"keys": torch.tensor([1, 2]), "features": torch.zeros(2, 3, 4), "scores": torch.zeros(2, 3)}
    with pytest.raises(ConfigError, match=message):
        SceneTargets(**given | change)
