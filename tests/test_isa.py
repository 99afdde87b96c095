"""Instruction sets of the CPU kernels: each gives the others' answers, can be forced, and lets go again."""

from __future__ import annotations

import itertools

import pytest
import torch

from avfast import _library, testing
from avfast.errors import BackendError
from avfast.testing import CASES, DTYPES, relative_error

native = _library.native
pytestmark = pytest.mark.skipif(
    native is None, reason=f"no introspection module: {_library.reason or 'not built for this Python'}"
)
HERE = [isa for isa in testing.ISAS if native and native.has_isa(isa)]
SHAPES = ((4, 5, 7, 7), (16, 33), (131, 40, 2, 2), (1, 2, 70, 71), (3, 130, 1, 1))


def test_the_best_set_of_this_machine_runs_by_default():
    assert HERE[0] == "base", "every machine runs the baseline"
    assert _library.isa() == HERE[-1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sets_agree_with_each_other(case, dtype, layout):
    """Flags, masks and counts exactly; numbers to a few roundings of the type they are summed in."""
    if len(HERE) == 1:
        pytest.skip("this processor has the baseline only: nothing to compare")
    for shape in SHAPES:
        args = testing.laid_out(case.make(shape, dtype, torch.Generator().manual_seed(1)), layout)
        results = []
        for isa in HERE:
            with testing.forced_isa(isa):
                results.append(case.run(*args))
        for (one, first), (other, second) in itertools.combinations(zip(HERE, results, strict=True), 2):
            for i, (a, b) in enumerate(zip(first, second, strict=True)):
                where = f"{case.name} {shape} output {i}: {one} and {other}"
                assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()), where
                if not a.is_floating_point():
                    assert torch.equal(a, b), where
                    continue
                # Summed in float32 at least; a last rounding to a half type may fall to either side.
                summed = max(torch.finfo(torch.promote_types(t, torch.float32)).eps for t in (dtype, a.dtype))
                if case.bf16_products and dtype == torch.bfloat16:
                    summed = torch.finfo(dtype).eps / 16
                assert relative_error(a, b) <= max(16 * summed, torch.finfo(a.dtype).eps), where


@pytest.mark.parametrize("isa", testing.ISAS)
def test_a_forced_set_runs_and_lets_go(isa):
    before = _library.isa()
    if isa not in HERE:
        with pytest.raises(BackendError, match=f"^avfast.testing.forced_isa: this machine has no {isa}$"):
            with testing.forced_isa(isa):
                pytest.fail("the block must not run")
    else:
        with testing.forced_isa(isa):
            assert _library.isa() == isa
    assert _library.isa() == before


def test_a_forced_set_lets_go_on_exceptions():
    before = _library.isa()
    with pytest.raises(ZeroDivisionError), testing.forced_isa("base"):
        1 / 0  # noqa: B018
    assert _library.isa() == before


def test_forced_sets_nest():
    if len(HERE) == 1:
        pytest.skip("this processor has the baseline only: nothing to nest")
    with testing.forced_isa("base"):
        with testing.forced_isa(HERE[-1]):
            assert _library.isa() == HERE[-1]
        assert _library.isa() == "base"
    assert _library.isa() == HERE[-1]


def test_explain_names_the_forced_set():
    from avfast import explain

    with testing.forced_isa("base"):
        assert str(explain("channel_stats")).startswith("channel_stats on cpu: cpp (base)\n")


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx", "base "])
def test_unknown_sets_are_refused(name):
    before = _library.isa()
    assert not native.has_isa(name)
    with pytest.raises(ValueError) as caught:
        native.force_isa(name)
    assert str(caught.value) == (
        f"avfast: instruction set: expected one this machine has (base, avx2, avx512, avx512_bf16), got {name}"
    )
    with pytest.raises(BackendError, match="this machine has no"), testing.forced_isa(name):
        pytest.fail("the block must not run")
    assert _library.isa() == before


def test_without_a_library_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(_library, "native", None)
    monkeypatch.setattr(_library, "reason", "switched off by AVFAST_NATIVE=0")
    with pytest.raises(BackendError, match="no compiled library: switched off by AVFAST_NATIVE=0"):
        with testing.forced_isa("base"):
            pytest.fail("the block must not run")
    with pytest.raises(BackendError, match="no compiled library"), testing.poisoned():
        pytest.fail("the block must not run")


def test_threads_see_the_forced_set():
    """The choice is the process's, not the thread's: worker threads of an op must run the same kernels."""
    import threading

    seen = []
    with testing.forced_isa("base"):
        thread = threading.Thread(target=lambda: seen.append(_library.isa()))
        thread.start()
        thread.join()
    assert seen == ["base"]
