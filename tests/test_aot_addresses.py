"""No Triton kernel multiplies an index of 32 bits with a stride of 32 bits: read from its code by triton_addresses.py.

Only the front end of Triton runs; nothing is compiled.
"""

from __future__ import annotations

import pytest
from interpreted import INTERPRETING

triton = pytest.importorskip("triton", reason="Triton is not installed")
if INTERPRETING:
    pytest.skip("an interpreted kernel has no code to read", allow_module_level=True)

import triton.language as tl  # noqa: E402
import triton_addresses  # noqa: E402

# What is left is a place along one dimension, below its size, or a number of tiles or patches of one map.
BOUNDED = {
    "channel_stats_kernel": {"n_begin: n_begin * samples_per_slice", "s_begin: s_begin * segment"},
    "pair_scores_kernel": {"..: .. * tiles_per_part"},
    "queue_walk_kernel": {"begin: part * keys_per_part"},
    "weighted_sums_kernel": {"tiles_a: tiles_a * tiles_a"},
    "box_bce_kernel": {"y_own: y_own * rows_per_tile", "tiles: tiles_y * tiles_x"},
    "correlate_kernel": {"begin: begin * per_program"},
    "exemplar_crop_kernel": {"tile: tiles * tiles", "rest: tiles * tiles"},
    "upsample_ce_kernel": {"y_own: y_own * rows_per_tile", "b: tiles_y * tiles_x", "tile: tiles_y * tiles_x"},
    "patch_mask_kernel": {"masked: .. * masked", "hidden: .. * .."},
}


def test_products_of_addresses_are_wide():
    assert {name: found for name, found in triton_addresses.products().items() if found} == BOUNDED


def test_slices_are_counted_in_as_many_bits_as_their_size():
    (case, *_) = (case for case in triton_addresses.forms() if case["kernel"].__name__ == "channel_stats_kernel")
    large = case | {"integers": case["integers"] | {"N": 2**31 + 9, "S": 2**31 + 9}}
    assert triton_addresses.Values(triton_addresses.code_of(large)).products() == set()


@triton.jit
def planted_kernel(x, out, N, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    place = i
    for step in range(0, N, BLOCK):
        narrow = (place + step) * stride
        total += tl.load(x + narrow, mask=i < N, other=0.0)
        place += N
    wide = i.to(tl.int64) * stride
    count = N * stride  # of which no address is made
    tl.store(out + wide, total * count, mask=i < N)


def test_the_reader_sees_what_it_is_for():
    case = {
        "kernel": planted_kernel,
        "pointers": {"x": "*fp32", "out": "*fp32"},
        "integers": {"N": 100, "stride": 1},
        "constants": {"BLOCK": 16},
        "options": {"num_warps": 4},
    }
    found = triton_addresses.Values(triton_addresses.code_of(case)).products()
    assert [product.split(":")[0] for product in found] == ["narrow"]
