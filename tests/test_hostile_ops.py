"""Every public op on tensors of any size, layout and value, drawn by hypothesis: the same cases every time."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="cases are drawn by hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import avfast  # noqa: E402
from avfast.benches.soak import fuzz_ops, hostile_tensors  # noqa: E402
from avfast.benches.soak.op_specs import SPECS, Call, Maker  # noqa: E402
from avfast.ops import _registry  # noqa: E402

EXAMPLES = 25


class Hypothetical:
    """Draws of hypothesis, which makes a case that fails smaller."""

    def __init__(self, data: st.DataObject) -> None:
        self._draw = data.draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def choice(self, options):
        return self._draw(st.sampled_from(options))


def test_every_public_op_is_drawn():
    assert set(_registry.public_ops()) <= set(SPECS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPECS)
def test_hostile_tensors(name):
    """The reference's value and gradients, or an error that names the op."""
    found = []

    @settings(
        derandomize=True, database=None, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def run(data):
        outcome, what = fuzz_ops.attempt(name, Hypothetical(data))
        found.append(outcome)
        assert outcome != "failed", what

    run()
    assert "equal" in found


@pytest.mark.filterwarnings("ignore")
def test_the_check_sees_what_is_wrong(monkeypatch):
    """An op that answers wrongly, writes to an argument, spreads NaN, or says nothing of itself."""

    def spec(run):
        return lambda m: Call(run, {"x": torch.ones(3, 4)}, ("x",))

    def wrong(x):
        return (x + (avfast.backends.current() == "torch"),)

    def writing(x):
        return (x.detach().add_(1),)

    def spreading(x):
        return (x * (1.0 if avfast.backends.current() == "torch" else float("nan")),)

    def silent(x):
        raise ValueError("bad")

    def one_sided(x):
        if avfast.backends.current() == "torch":
            raise ValueError("avfast.x: x: expected less, got more")
        return (x,)

    for run, words in (
        (wrong, "apart"),
        (writing, "written to"),
        (spreading, "NaN"),
        (silent, "bad"),
        (one_sided, "ours"),
    ):
        monkeypatch.setitem(SPECS, "x", spec(run))
        monkeypatch.setattr(fuzz_ops, "spoilt", lambda x, wrong: x)
        outcomes = [fuzz_ops.attempt("x", hostile_tensors.Seeded(i)) for i in range(8)]
        assert any(o == "failed" and words in w for o, w in outcomes), words


@pytest.mark.parametrize("name", hostile_tensors.LAYOUTS)
def test_layouts_are_what_they_say(name):
    draw = hostile_tensors.Seeded(1)
    x = hostile_tensors.values(draw, (3, 4, 5), torch.float32, "usual")
    y = getattr(hostile_tensors, f"_{name}")(draw, x)
    assert y.shape == x.shape and y.dtype == x.dtype
    if name not in ("repeated", "overlapping"):
        assert torch.equal(y, x)
    assert {"misaligned": y.data_ptr() % 4 == 1, "repeated": 0 in y.stride(), "negated": y.is_neg(),
            "holes": not y.is_contiguous(), "offset": y.storage_offset() == 1,
            "overlapping": y.untyped_storage().nbytes() >= 4 and sum(y.stride()) < 20}.get(name, True)  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_shapes_on_the_meta_device(name):
    """Where nothing is computed, results have the shapes and types of those that are."""
    for seed in range(6):
        call = SPECS[name](Maker(hostile_tensors.Seeded(f"meta {seed}")))
        try:
            real = call.run(**call.tensors)
        except fuzz_ops.KNOWN:
            continue
        meta = call.run(**{n: x.to("meta") for n, x in call.tensors.items()})
        assert [(x.shape, x.dtype) for x in meta] == [(x.shape, x.dtype) for x in real]
        assert all(x.device.type == "meta" for x in meta if x.numel())


def test_more_than_2_31_elements_on_the_meta_device():
    """Shapes and types of what no machine here could hold."""
    n = 2**31 + 9
    x = torch.empty(n, 2, device="meta", dtype=torch.float16)
    assert avfast.info_nce(x, x, reduction="none").shape == (n,)
    assert avfast.channel_stats(x.T.contiguous()).mean.shape == (n,)
    assert avfast.masked_fusion(x, x, mode="concat").shape == (n, 4)
    assert avfast.masked_concat_linear(x, x, torch.empty(3, 4, device="meta", dtype=torch.float16)).shape == (n, 3)
    q = torch.empty(1, 2, n, device="meta")
    assert avfast.dense_match(q, q[..., :5]).index.shape == (1, n)
    pictures = torch.empty(n, 1, 1, 1, device="meta")
    assert avfast.mask_patches(pictures, 0.5, 1, seed=0)[0].shape == pictures.shape


def test_writing_in_place_to_memory_that_overlaps_is_refused():
    for x in (
        torch.ones(1, 1, 4, 4).expand(3, 1, 4, 4),
        torch.ones(40).as_strided((2, 1, 4, 4), (1, 16, 4, 1)),
        torch.ones(2, 1, 8, 8)[..., ::2, ::2],
        torch.ones(2, 1, 4, 4).requires_grad_() * 1,
        torch._neg_view(torch.ones(2, 1, 4, 4))[:, :, ::2],
    ):
        with pytest.raises(ValueError, match="^avfast.mask_patches: inplace: expected a contiguous x without gradient"):
            avfast.mask_patches(x, 0.5, 2, seed=0, inplace=True)
    x = torch.ones(2, 1, 4, 4)
    avfast.mask_patches(x, 0.5, 2, seed=0, inplace=True)
    assert x.sum() == 16
