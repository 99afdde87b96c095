// Per-channel sums over an activation: what statistics and both backward passes have in common.
//
// Every reduction here is two sums per channel, sum(a) and sum(a b), of an element-wise (a, b):
//
//   statistics          a = x - shift        b = x - shift
//   blended backward    a = g'               b = x - mean       g' = g where the activation let it through
//   affine backward     a = g'               b = x
//
// A thread adds at most a few hundred terms in Acc<T>, in four (rows) or V (lanes) independent chains. Everything after
// that is double and in a fixed order: chains, the threads of a block by a shuffle tree and then warp by warp, and the
// slices of a channel by finish_sums in a second, tiny kernel. No float atomics: the same input gives the same bits.
#pragma once

#include "activation_walk.cuh"

namespace avfast {

constexpr int block_warps = block_threads / warp_size;
constexpr int finish_threads = 128;  // four channels per block, one warp each

// Chains of one thread: lanes have one per channel, rows spread their one channel over four.
template <typename A, Activation::Order O, int V>
struct Chains {
  static constexpr int count = O == Activation::rows ? 4 : V;
  A sum[count] = {}, product[count] = {};

  // Element j of the u-th pack in flight.
  __device__ __forceinline__ void add(int u, int j, A a, A b) {
    const int k = O == Activation::lanes ? j : (V > 1 ? j : u) % 4;
    sum[k] += a;
    product[k] = fma(a, b, product[k]);
  }
  __device__ __forceinline__ double2 total(int channel) const {
    if constexpr (O == Activation::lanes) return {double(sum[channel]), double(product[channel])};
    double2 t{0.0, 0.0};
#pragma unroll
    for (int k = 0; k < count; ++k) {
      t.x += double(sum[k]);
      t.y += double(product[k]);
    }
    return t;
  }
};

// Sums v over the threads that share a column, columns being threadIdx.x % columns. The totals are left in v of threads
// [0, columns). `shared` holds block_warps * warp_size values of each of the M; the call leaves it free for the next one.
template <int M>
__device__ __forceinline__ void sum_columns(double (&v)[M], int columns, double (*shared)[block_threads]) {
#pragma unroll 1
  for (int offset = warp_size / 2; offset >= columns; offset /= 2)
#pragma unroll
    for (int m = 0; m < M; ++m) v[m] += __shfl_xor_sync(full_warp, v[m], offset);
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  if (lane < columns)
#pragma unroll
    for (int m = 0; m < M; ++m) shared[m][warp * warp_size + lane] = v[m];
  __syncthreads();
  if (threadIdx.x < columns) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      double total = 0;
      for (int w = 0; w < block_warps; ++w) total += shared[m][w * warp_size + lane];
      v[m] = total;
    }
  }
  __syncthreads();
}

// ------------------------------------------------------------------------------------- between kernels

// What one block leaves per channel. Counts exist only where zeros are asked for.
struct Partials {
  double2* sums;  // [C, slices]
  int2* counts;   // [C, slices]: zeros; dead samples, or 1 where a segment of a sample is all zero
};

// Enough for either cut an activation may get, in packs or element by element.
inline int64_t partials_count(const Activation& x) {
  return x.channels * std::max(slice_by(x, 1).count, slice_by(x, widest_pack(x)).count);
}

// One warp adds the slices of a channel: lane k takes slices k, k + 32, ... and a shuffle tree the rest.
__device__ __forceinline__ double2 finish_sums(const double2* sums, int64_t slices) {
  double2 t{0.0, 0.0};
  for (int64_t k = threadIdx.x % warp_size; k < slices; k += warp_size) {
    const double2 part = sums[k];
    t.x += part.x;
    t.y += part.y;
  }
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    t.x += __shfl_xor_sync(full_warp, t.x, offset);
    t.y += __shfl_xor_sync(full_warp, t.y, offset);
  }
  return t;
}

__device__ __forceinline__ int64_t finish_channel() {
  return static_cast<int64_t>(blockIdx.x) * (finish_threads / warp_size) + threadIdx.x / warp_size;
}
inline int64_t finish_blocks(int64_t channels) { return ceil_div(channels, finish_threads / warp_size); }

}  // namespace avfast
