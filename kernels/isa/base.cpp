// CPU kernels for any x86-64 (SSE2), and for every other processor.
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

#define AVFAST_VECTOR_BYTES 16
namespace avfast::isa_base {
#include "shared.inl"

#include <bodies.inl>  // of one family: its folder is on the include path
}
