// Mean and variance of every channel in one read, with or without the counts of zeros and dead samples.
//
// Shifting, twice. One-pass variance loses its digits when the mean is large against the deviation, so
//   - a thread shifts by the first element it meets, in Acc<T>. An outlier there costs only this thread's few hundred
//     terms, and those hold the outlier itself, so the relative error stays below (terms of a thread) * epsilon;
//   - threads, blocks and slices meet around one reference, the channel's first element, in double. From sums s, q of
//     n values around a shift t, with a = t - reference:
//         sum(x - reference) = s + n a          sum((x - reference)^2) = q + 2 a s + n a^2
//     which is additive: Chan's merge without its divisions. The error of s enters the variance times (t - mean), not
//     times (reference - mean): the rest cancels between the two sums.
#pragma once

#include "channel_reduce.cuh"

namespace avfast {

template <typename A>
__device__ __forceinline__ A finite_or_zero(A v) {
  return isfinite(v) ? v : A(0);
}

// The point all sums of a channel are taken around. A NaN or infinity there must not spoil an infinite mean.
template <typename T>
__device__ __forceinline__ double channel_reference(const T* x, const Slices& s, int64_t channel) {
  return double(finite_or_zero(to_acc(x[s.order == Activation::rows ? channel * s.positions : channel])));
}

template <typename T, Activation::Order O, int V, bool Count>
__global__ void __launch_bounds__(block_threads, min_blocks<O, V>)
moments_kernel(const T* x, const __grid_constant__ Slices s, Acc<T> limit, Partials out) {
  using A = Acc<T>;
  constexpr int values = Count ? 4 : 2;
  constexpr int unroll = 4;
  __shared__ double shared[values][block_threads];
  __shared__ unsigned live[Count ? max_flags : 1];  // per (sample, pack): bit j for channel j of the pack

  const Walk<O, V> walk(s);
  const bool flags = Count && !s.position_is_sample;
  if (flags) {
    for (int i = threadIdx.x; i < walk.samples * s.tile_packs; i += block_threads) live[i] = 0;
    __syncthreads();
  }

  A shift[walk.channels] = {};
  if (walk.visits() > 0) {
    Pack<T, V> first;
    first.load(x + walk.first_offset());
#pragma unroll
    for (int c = 0; c < walk.channels; ++c) shift[c] = finite_or_zero(to_acc(first.v[c]));
  }

  Chains<A, O, V> chains;
  unsigned nonzero[walk.channels] = {};
  unsigned alive = 0;  // channels seen alive in the sample this thread is in
  int current = 0;
  Pack<T, V> pack[unroll];
  walk.template each<unroll>(
      [&](int u, int64_t offset) { pack[u].load(x + offset); },
      [&](int u, int sample, int64_t) {
        if (flags && sample != current) {
          if (alive) atomicOr(&live[current * s.tile_packs + walk.column], alive);
          alive = 0;
          current = sample;
        }
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const int c = walk.channel_of(j);
          const A v = to_acc(pack[u].v[j]);
          const A d = v - shift[c];
          chains.add(u, j, d, d);
          if constexpr (Count) {
            const unsigned bit = !(fabs(v) <= limit);  // NaN is not zero
            nonzero[c] += bit;
            alive |= bit << c;
          }
        }
      });
  if (flags) {
    if (alive) atomicOr(&live[current * s.tile_packs + walk.column], alive);
    __syncthreads();
  }

  const double terms = double(walk.visits()) * (O == Activation::rows ? V : 1);
#pragma unroll
  for (int c = 0; c < walk.channels; ++c) {
    const bool writes = walk.active && walk.channel + c < s.channels;
    double v[values] = {};
    if (walk.active) {
      const double a = double(shift[c]) - channel_reference(x, s, walk.channel + c);
      const double2 t = chains.total(c);
      if (terms > 0) {
        v[0] = t.x + terms * a;
        v[1] = t.y + 2 * a * t.x + terms * a * a;
      }
    }
    if constexpr (Count) {
      v[2] = terms - double(nonzero[c]);
      if (flags)
        for (int i = walk.lane; i < walk.samples; i += walk.lanes)
          v[3] += double(!(live[i * s.tile_packs + walk.column] >> c & 1));
    }
    sum_columns(v, s.tile_packs, shared);
    if (threadIdx.x < s.tile_packs && writes) {
      const int64_t at = (walk.channel + c) * s.count + walk.slice;
      out.sums[at] = {v[0], v[1]};
      if constexpr (Count) out.counts[at] = {int(v[2]), int(v[3])};
    }
  }
}

struct MeanVar {
  double mean, var;
};

// One warp per channel. NaN for an empty channel, as torch gives.
template <typename T>
__device__ __forceinline__ MeanVar finish_moments(const T* x, const Slices& s, const double2* sums, int64_t channel) {
  const double n = double(s.samples) * double(s.positions);
  const double2 t = finish_sums(sums + channel * s.count, s.count);
  const double offset = t.x / n;
  const double var = t.y / n - offset * offset;
  const double reference = s.count ? channel_reference(x, s, channel) : 0.0;
  return {reference + offset, var < 0 ? 0.0 : var};  // rounding may leave -1e-20; NaN passes
}

template <bool Count>
inline int launch_moments(
    const Slices& s, DType dtype, const void* data, double limit, const Partials& out, void* stream) {
  return dispatch_walk(s, dtype, [&](auto type, auto order, auto width) {
    using T = typename decltype(type)::type;
    return launch(
        moments_kernel<T, decltype(order)::value, decltype(width)::value, Count>, s.blocks(), block_threads, stream,
        static_cast<const T*>(data), s, static_cast<Acc<T>>(limit), out);
  });
}

}  // namespace avfast
