"""Choosing a backend: set, scoped, by environment; explained, refused with a reason, and gone without a trace."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import why_not

import avfast
from avfast import _library, backends, testing
from avfast.errors import BackendError
from avfast.ops import _registry

needs_library = pytest.mark.skipif(not _library.loaded, reason=f"no compiled library: {_library.reason}")
needs_native = pytest.mark.skipif(_library.native is None, reason="no introspection module: cannot poison outputs")
X = torch.linspace(-1, 1, 2 * 3 * 20).view(2, 3, 20)
ONE, MATCH = (torch.ones(1),), torch.zeros(2, 20, dtype=torch.int64)
CALLS = {
    "blended_batch_norm": lambda: avfast.blended_batch_norm(X, *torch.ones(5, 3).unbind()),
    "channel_affine": lambda: avfast.channel_affine(X, torch.ones(3), torch.ones(3)),
    "channel_stats": lambda: avfast.channel_stats(X).mean,
    "correlate": lambda: avfast.correlate(X[:, :, None], X[:, :, None, None], X[:, :, None, None]),
    "crop_exemplars": lambda: avfast.crop_exemplars(X[:, :, None], X[:, :1, :5], out=2),
    "dense_contrastive": lambda: avfast.dense_contrastive(X, X, X[0, :, :9].T, MATCH, reduction="none"),
    "dense_match": lambda: avfast.dense_match(X, X).similarity,
    "info_nce": lambda: torch.ops.avfast.pair_nce_fwd(X[0], X[1], *ONE, None, None, 0, -1, 0, True, False)[0],
    "masked_concat_linear": lambda: avfast.masked_concat_linear(X[0], X[0], X[0, :, :1].expand(3, 40).contiguous()),
    "mask_patches": lambda: avfast.mask_patches(X[:, :, None], 0.5, 1, seed=0)[0],
    "masked_fusion": lambda: avfast.masked_fusion(X[..., 0], X[..., 1]),
    "nt_xent": lambda: torch.ops.avfast.self_nce_fwd(X[0, :2], *ONE, None, True)[0],
    "queue_info_nce": lambda: avfast.queue_info_nce(X[0], X[1], X[0], reduction="none"),
    "recolour": lambda: avfast.recolour(X[:, :, None]),
    "rotated_box_bce": lambda: torch.ops.avfast.box_bce_fwd(
        X[None, :1], X[0, :1, :5], None, 30, 30, 9.0, True, 0.0, False
    )[0],
    "scan_batchnorm": lambda: torch.ops.avfast.bn_scan(
        [torch.ones(4)], [torch.ones(4)], [torch.ones(4)], [torch.ones(4)], 0.0
    )[1],
    "sigmoid_contrastive": lambda: torch.ops.avfast.sigmoid_nce_fwd(X[0], X[1], *ONE, *ONE, 0, True),
    "sup_con": lambda: torch.ops.avfast.self_nce_fwd(X[0], *ONE, torch.tensor([0, 1, 0]), True)[0],
    "yuv_to_rgb": lambda: avfast.yuv_to_rgb(*torch.ones(3, 2, 5, 5, dtype=torch.uint8), size=4, dtype=torch.float32),
    "upsample_cross_entropy": lambda: avfast.upsample_cross_entropy(
        X[None, :], MATCH[None], align_corners=True, reduction="none"
    ),
}
"""A tensor that each public op computes."""


@pytest.fixture(autouse=True)
def from_auto_and_back():
    before = backends.current()
    backends.set_backend("auto")
    yield
    backends.set_backend(before)


def computed_by_kernel(call) -> bool:
    """Outputs of the compiled kernels, and of nothing else, lie between guards when poisoned."""
    with testing.poisoned():
        return call().storage_offset() == testing.GUARD


def registrations() -> dict[str, str]:
    """The dispatcher's whole table of every operator, as text."""
    return {name: torch._C._dispatch_dump(f"avfast::{name}") for name in _registry.BOUNDARIES}


# ----------------------------------------------------------------------------------------------- choosing


def test_every_public_op_is_called_here():
    assert set(CALLS) == set(_registry.public_ops())


def test_set_and_back():
    avfast.set_backend("torch")
    assert backends.current() == "torch"
    avfast.set_backend("auto")
    assert backends.current() == "auto"


def test_scopes_nest_and_end_on_exceptions():
    avfast.set_backend("auto")
    with pytest.raises(ZeroDivisionError), avfast.use_backend("torch"):
        with avfast.use_backend("auto"):
            assert backends.current() == "auto"
        assert backends.current() == "torch"
        1 / 0  # noqa: B018
    assert backends.current() == "auto"


def test_a_scope_works_as_a_decorator():
    @avfast.use_backend("torch")
    def name():
        return backends.current()

    assert [name(), name()] == ["torch", "torch"] and backends.current() == "auto"


@pytest.mark.parametrize("name", ["", "reference", "CPP", None], ids=repr)
def test_unknown_names_are_refused_and_change_nothing(name):
    avfast.set_backend("torch")
    with pytest.raises(BackendError) as caught:
        avfast.set_backend(name)
    expected = f"avfast.set_backend: name: expected one of auto, torch, cpp, cuda, triton, got {name!r}"
    assert str(caught.value) == expected
    assert backends.current() == "torch"


@pytest.mark.parametrize("name", ["cpp", "cuda", "triton"])
def test_a_backend_this_machine_lacks_is_refused_at_once(name):
    if (reason := why_not(name)) is None:
        pytest.skip(f"this machine has {name}")
    before = registrations()
    with pytest.raises(BackendError) as caught, avfast.use_backend(name):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"avfast: backend '{name}' cannot run here: {reason.removeprefix(name + ': ')}"
    assert backends.current() == "auto" and registrations() == before


REASONS = {
    "no library": ("cpp", "libavfast.so was not built (no C++ compiler at install time, or AVFAST_NATIVE=0)"),
    "no library for cuda": ("cuda", "libavfast.so was not built (no C++ compiler at install time, or AVFAST_NATIVE=0)"),
    "no nvcc": ("cuda", "the library was built without CUDA (nvcc was not found, or AVFAST_CUDA=0)"),
    "no device": ("cuda", "torch sees no CUDA device"),
    "no triton": ("triton", "the package 'triton' is not installed"),
    "no device for triton": ("triton", "torch sees no CUDA device, and TRITON_INTERPRET is not 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_each_reason_in_words(case, monkeypatch):
    """Machines we do not have, one fact at a time."""
    name, reason = REASONS[case]
    everywhere = frozenset((b, device) for b in _registry.BOUNDARIES for device in ("cpu", "cuda"))
    monkeypatch.setattr(_library, "loaded", "no library" not in case)
    monkeypatch.setattr(_library, "reason", reason)
    monkeypatch.setattr(_library, "_kernels", frozenset() if case == "no nvcc" else everywhere)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda module: None if case == "no triton" else object())
    with pytest.raises(BackendError) as caught:
        avfast.set_backend(name)
    assert str(caught.value) == f"avfast: backend '{name}' cannot run here: {reason}"


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_environment_variable():
    code = "import avfast, avfast.backends as b; print(b.current(), b.explain('channel_stats').chosen)"
    done = in_a_process(code, AVFAST_BACKEND="torch")
    assert done.stdout == "torch torch\n", done.stderr


def test_environment_variable_with_an_unknown_name():
    done = in_a_process("import avfast", AVFAST_BACKEND="turbo")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("expected one of auto, torch, cpp, cuda, triton, got 'turbo'")


def test_library_switched_off_by_environment():
    code = (
        "import avfast, torch\n"
        "print(avfast.explain('channel_stats'))\n"
        "print(avfast.channel_stats(torch.ones(1, 2, 3)).mean.tolist())"
    )
    done = in_a_process(code, AVFAST_NATIVE="0", AVFAST_BACKEND="")
    assert done.stdout.splitlines()[:3] == [
        "channel_stats on cpu: torch",
        "  torch   runs",
        "  cpp     switched off by AVFAST_NATIVE=0",
    ], done.stderr
    assert done.stdout.splitlines()[-1] == "[1.0, 1.0]"


# --------------------------------------------------------------------------------------- what really runs


@needs_native
@pytest.mark.parametrize("op", CALLS)
def test_the_kernel_runs_unless_the_reference_was_chosen(op):
    assert computed_by_kernel(CALLS[op])
    with avfast.use_backend("torch"):
        assert not computed_by_kernel(CALLS[op])
    assert computed_by_kernel(CALLS[op])


@needs_native
def test_a_scan_plan_obeys_the_backend():
    """A plan holds pointers inside the library; the reference must be used all the same when it is asked for."""
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(5), torch.nn.BatchNorm2d(3))
    plan = avfast.ScanPlan(net)

    def scan():
        return plan.scan(1e-10).score

    assert computed_by_kernel(scan)
    with avfast.use_backend("torch"):
        assert not computed_by_kernel(scan)
        inside = scan()
    assert computed_by_kernel(scan) and torch.equal(scan(), inside)


@needs_library
def test_gradients_obey_the_backend_in_force_when_they_run():
    x = X.clone().requires_grad_()
    y = avfast.channel_affine(x, torch.full((3,), 2.0), torch.ones(3), activation="relu")
    with avfast.use_backend("torch"):
        y.sum().backward()
    expected = torch.where(2 * X + 1 > 0, 2.0, 0.0)
    assert torch.equal(x.grad, expected)


def test_overrides_leave_no_trace():
    avfast.set_backend("auto")
    before = registrations()
    with avfast.use_backend("torch"):
        inside = registrations()
        with avfast.use_backend("torch"):
            assert registrations().keys() == before.keys()
    assert all(inside[name] != before[name] for name in before), "the override must be visible in the table"
    assert registrations() == before


@pytest.mark.parametrize("op", CALLS)
def test_reference_and_default_agree(op):
    default = CALLS[op]()
    with avfast.use_backend("torch"):
        torch.testing.assert_close(CALLS[op](), default, rtol=1e-5, atol=1e-6)


@needs_native
def test_compiled_graphs_follow_the_backend_without_recompiling():
    """The choice lives in the dispatcher, below the graph: no guard on it, and no graph built twice."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(x):
        return avfast.channel_affine(x, torch.full((3,), 2.0), torch.ones(3))

    torch.compiler.reset()
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    assert computed_by_kernel(lambda: compiled(X))
    with avfast.use_backend("torch"):
        assert not computed_by_kernel(lambda: compiled(X))
        assert torch.equal(compiled(X), step(X))
    assert computed_by_kernel(lambda: compiled(X))
    assert len(graphs) == 1


# ---------------------------------------------------------------------------------------------- explaining


@pytest.mark.parametrize("op", CALLS)
def test_explain_says_what_runs_and_why_not_the_rest(op):
    found = avfast.explain(op, X)
    assert (found.op, found.device) == (op, "cpu")
    assert list(found.reasons) == ["torch", "cpp", "cuda", "triton"]
    assert [name for name, why in found.reasons.items() if why == "runs"] == [found.chosen]
    assert found.chosen == ("cpp" if _library.loaded else "torch")
    lines = str(found).splitlines()
    isa = f" ({_library.isa()})" if found.chosen == "cpp" and _library.isa() else ""
    assert lines[0] == f"{op} on cpu: {found.chosen}{isa}"
    assert [line.split()[0] for line in lines[1:]] == list(found.reasons)
    assert all(len(why) > 3 for why in found.reasons.values())


@needs_library
def test_explain_takes_functions_and_names_the_choice():
    with avfast.use_backend("torch"):
        found = avfast.explain(avfast.channel_stats, X)
    assert found.chosen == "torch" and found.reasons["cpp"] == "can run, but 'torch' was chosen"
    assert avfast.explain(avfast.channel_stats, X).reasons["torch"] == "can run, comes later"
    assert avfast.explain("blended_batch_norm").reasons["triton"] == "this op has no Triton kernel"


def test_explain_follows_the_device(monkeypatch):
    """Decided for tensors that are elsewhere, without touching them."""
    monkeypatch.setattr(_library, "loaded", True)
    monkeypatch.setattr(_library, "_kernels", frozenset((b, d) for b in _registry.BOUNDARIES for d in ("cpu", "cuda")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends._reason("cpp", "channel_stats", "cuda") == "it runs on CPU tensors, got cuda"
    assert backends._reason("cuda", "channel_stats", "cpu") == "it runs on CUDA tensors, got cpu"
    assert backends._reason("cuda", "channel_stats", "cuda") is None
    monkeypatch.setattr(_library, "_kernels", frozenset({("blended_bn_fwd", "cuda")}))
    assert backends._reason("cuda", "blended_batch_norm", "cuda") == (
        "the library has no cuda kernel for blended_bn_bwd"
    )
    meta = avfast.explain("channel_stats", X.to("meta"))
    assert (meta.device, meta.chosen) == ("meta", "torch")


def test_triton_on_the_cpu_only_under_the_interpreter(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backends._reason("triton", "channel_stats", "cpu") == "it runs on CUDA tensors, got cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends._reason("triton", "channel_stats", "cpu") is None


def test_explain_refuses_what_it_does_not_know():
    with pytest.raises(BackendError, match="op: expected one of blended_batch_norm, .*, got 'softmax'"):
        avfast.explain("softmax")


@needs_library
def test_explain_raises_where_the_named_backend_would():
    with avfast.use_backend("cpp"):
        with pytest.raises(BackendError, match="backend 'cpp' cannot run: it runs on CPU tensors, got meta"):
            avfast.explain("channel_stats", X.to("meta"))


def test_the_reference_on_a_gpu_is_announced_once():
    """`auto` may fall through to plain PyTorch on a GPU, but not in silence."""
    run = backends._warn_once_then(_registry.BOUNDARIES["channel_affine_fwd"])
    arguments = (X, torch.ones(3), torch.ones(3), False)
    with pytest.warns(UserWarning, match="avfast.channel_affine runs its plain PyTorch reference on the GPU: ") as seen:
        first, second = run(*arguments), run(*arguments)
    assert len(seen) == 1 and torch.equal(first, X + 1) and torch.equal(second, X + 1)
