// CPU kernels for AVX-512 F, BW, DQ and VL.
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
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define AVFAST_VECTOR_BYTES 64
namespace avfast::isa_avx512 {
#include "shared.inl"

#include <bodies.inl>  // of one family: its folder is on the include path
}
#endif
