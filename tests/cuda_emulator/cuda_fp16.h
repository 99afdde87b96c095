// Half precision for the emulator.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  _Float16 v;
};

inline __half __ushort_as_half(uint16_t bits) { __half h; memcpy(&h, &bits, 2); return h; }
inline uint16_t __half_as_ushort(__half h) { uint16_t bits; memcpy(&bits, &h, 2); return bits; }
inline float __half2float(__half h) { return float(h.v); }
inline __half __float2half_rn(float f) { return {_Float16(f)}; }
