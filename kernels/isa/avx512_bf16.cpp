// CPU kernels for AVX-512 F, BW, DQ, VL and the bf16 dot product (Zen 4, Sapphire Rapids and later).
// Standard headers come before the pragma: code compiled under it must not be the copy the linker keeps for everyone.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(AVFAST_UP_TO_AVX2)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#define AVFAST_BF16_DOT 1
#define AVFAST_VECTOR_BYTES 64
namespace avfast::isa_avx512_bf16 {
#include "shared.inl"

#include <bodies.inl>  // of one family: its folder is on the include path
}
#endif
