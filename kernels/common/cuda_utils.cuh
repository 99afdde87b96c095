// What every CUDA kernel here shares: element conversion, 16-byte packs, dtype dispatch, launch. No torch header.
//
// Numerics: IEEE arithmetic throughout (no fast-math, no flush-to-zero). 16-bit types are storage only; `Acc<T>` is the
// type computed in: double for f64, float for everything else.
#pragma once

#include <cstdint>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "types.h"

namespace avfast {

constexpr int warp_size = 32;
constexpr unsigned full_warp = 0xffffffffu;

template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// ------------------------------------------------------------------------------------------ conversion

__device__ __forceinline__ float to_acc(float v) { return v; }
__device__ __forceinline__ double to_acc(double v) { return v; }
__device__ __forceinline__ float to_acc(f16_t v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ __forceinline__ float to_acc(bf16_t v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }

// Round to nearest even, once.
template <typename T>
__device__ __forceinline__ T from_acc(Acc<T> v) {
  if constexpr (std::is_same_v<T, f16_t>) {
    return f16_t{__half_as_ushort(__float2half_rn(v))};
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return bf16_t{__bfloat16_as_ushort(__float2bfloat16_rn(v))};
  } else {
    return v;
  }
}

// ------------------------------------------------------------------------------------------------ packs

// V neighbouring elements, moved by one instruction: V * sizeof(T) is 16, or V is 1.
template <typename T, int V>
struct Pack {
  static_assert(V == 1 || V * sizeof(T) == 16, "a pack is one element or 16 bytes");
  T v[V];

  __device__ __forceinline__ void load(const T* p) {
    if constexpr (V == 1) {
      v[0] = *p;
    } else {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(p));
      memcpy(v, &raw, sizeof raw);
    }
  }

  __device__ __forceinline__ void store(T* p) const {
    if constexpr (V == 1) {
      *p = v[0];
    } else {
      uint4 raw;
      memcpy(&raw, v, sizeof raw);
      __stwb(reinterpret_cast<uint4*>(p), raw);  // the default policy; a plain store would be split into words
    }
  }
};

// The widest pack of a type. 8-byte elements already fill a 256-byte line per warp one at a time.
template <typename T>
constexpr int pack_width = sizeof(T) == 8 ? 1 : static_cast<int>(16 / sizeof(T));

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// --------------------------------------------------------------------------------------------- dispatch

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the element type of `dtype`; false when there is none.
template <typename F>
inline bool dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: f(Type<float>{}); return true;
    case DType::f64: f(Type<double>{}); return true;
    case DType::f16: f(Type<f16_t>{}); return true;
    case DType::bf16: f(Type<bf16_t>{}); return true;
  }
  return false;
}

// ----------------------------------------------------------------------------------------------- launch

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A launch of nothing is legal here although CUDA refuses it. Errors are left for cudaGetLastError.
template <typename... Params, typename... Args>
inline int launch(void (*kernel)(Params...), int64_t blocks, int threads, void* stream, const Args&... args) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  const cudaError_t last = cudaGetLastError();  // also clears it: the next call starts clean
  return static_cast<int>(status != cudaSuccess ? status : last);
}

}  // namespace avfast
