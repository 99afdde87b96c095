// CPU kernels for AVX2, FMA and F16C.
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

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")
#define AVFAST_VECTOR_BYTES 32
namespace avfast::isa_avx2 {
#include "shared.inl"

#include <bodies.inl>  // of one family: its folder is on the include path
}
#endif
