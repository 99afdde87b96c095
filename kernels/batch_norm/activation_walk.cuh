// How blocks and threads share an activation. One cut, made from the shape alone, serves every batch-norm kernel.
//
// The activation is cut into slices of positions: whole samples where maps are small, parts of one map where they are
// large, never a bit of both. A block takes one slice of one tile of channels:
//
//   rows  [N, C, S]  tile = 1 channel; 256 threads walk the slice's maps as one list, 16 bytes each
//   lanes [N, S, C]  tile = TX packs of neighbouring channels; 256 / TX threads walk the slice's positions
//
// A thread visits its items four at a time, so that four independent loads are in flight before the first use. Carrying
// (sample, position) forward replaces the division an index would need. Everything inside a slice fits 32 bits; offsets
// into the activation are 64-bit.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "../common/cuda_utils.cuh"
#include "batch_norm.h"

namespace avfast {

constexpr int block_threads = 256;
constexpr int64_t wanted_blocks = 2112;       // 16 per multiprocessor of an H100: enough waves to hide the last one
constexpr int64_t row_slice_min = 4096, row_slice_max = 32768;      // elements
constexpr int64_t lane_visits_min = 8, lane_visits_max = 64;        // positions per thread
constexpr int max_flags = 2048;               // (sample, pack) flags a block keeps in shared memory

struct Slices {
  int64_t samples, channels, positions;
  Activation::Order order;
  int width;               // elements per pack
  int tile_packs;          // lanes: TX, a power of two up to a warp; rows: 1
  int64_t tiles;           // of channels
  int samples_per_slice;   // 1 where a map is cut into segments
  int64_t segments;        // of a map
  int segment;             // positions of a segment; the whole map where segments is 1
  int64_t count;           // slices of a channel
  bool position_is_sample; // S was 1: each position is a sample of its own, so dead == zeros

  int64_t blocks() const { return tiles * count; }
};

// Orders coincide in memory where S or C is 1: then take the one that vectorises.
inline Activation canonical(Activation x) {
  if (x.positions == 1) {
    x.order = Activation::lanes;
    x.positions = x.samples;
    x.samples = std::min<int64_t>(x.samples, 1);
  }
  if (x.channels == 1) x.order = Activation::rows;
  return x;
}

// The widest pack the shape allows: maps (rows) or channels (lanes) must not end inside one.
inline int widest_pack(const Activation& x) {
  const Activation a = canonical(x);
  const int width = a.dtype == DType::f64 ? pack_width<double> : static_cast<int>(16 / size_of(a.dtype));
  return (a.order == Activation::rows ? a.positions : a.channels) % width == 0 ? width : 1;
}

// A function of shape and pack width alone: the same tensor gives the same bits on every card and in every stream.
inline Slices slice_by(const Activation& x, int width) {
  const Activation a = canonical(x);
  Slices s{};
  s.samples = a.samples;
  s.channels = a.channels;
  s.positions = a.positions;
  s.order = a.order;
  s.width = width;
  s.position_is_sample = x.positions == 1;
  s.segments = 1;
  s.tile_packs = 1;
  s.tiles = a.channels;
  int64_t low = row_slice_min, high = row_slice_max;
  if (a.order == Activation::lanes) {
    const int64_t packs = ceil_div(a.channels, width);
    while (s.tile_packs < packs && s.tile_packs < warp_size) s.tile_packs *= 2;
    s.tiles = ceil_div(packs, s.tile_packs);
    low = lane_visits_min * block_threads / s.tile_packs;
    high = lane_visits_max * block_threads / s.tile_packs;
  }
  if (a.numel() == 0) return s;  // count 0: nothing to visit

  const int64_t wanted = std::clamp(ceil_div(a.per_channel() * s.tiles, wanted_blocks), low, high);
  if (a.positions >= 2 * wanted) {
    s.segments = ceil_div(a.positions, wanted);
    s.segment = static_cast<int>(ceil_div(ceil_div(a.positions, s.segments), 16) * 16);
    s.segments = ceil_div(a.positions, s.segment);
    s.samples_per_slice = 1;
    s.count = a.samples * s.segments;
  } else {
    const int64_t most = std::min<int64_t>(a.samples, max_flags / s.tile_packs);
    const int64_t per_slice = std::clamp<int64_t>(wanted / a.positions, 1, most);
    s.samples_per_slice = static_cast<int>(ceil_div(a.samples, ceil_div(a.samples, per_slice)));  // even slices
    s.segment = static_cast<int>(a.positions);
    s.count = ceil_div(a.samples, s.samples_per_slice);
  }
  return s;
}

// The cut for these tensors, all shaped like x: packs only if each of them starts on a 16-byte boundary.
inline Slices slice(const Activation& x, std::initializer_list<const void*> tensors) {
  const bool aligned = std::all_of(tensors.begin(), tensors.end(), aligned16);
  return slice_by(x, aligned ? widest_pack(x) : 1);
}

// One thread's share of its block's slice.
template <Activation::Order O, int V>
struct Walk {
  // Channels a thread carries: one along rows, one per element of the pack along lanes.
  static constexpr int channels = O == Activation::rows ? 1 : V;
  __host__ __device__ static constexpr int channel_of(int j) { return O == Activation::rows ? 0 : j; }

  int64_t base;           // offset of the slice's first item of this thread's column
  int64_t sample_stride;  // rows: elements from one map to the next
  int64_t step;           // lanes: elements from one position to the next
  int64_t channel;        // first channel of this thread
  int64_t slice;          // index of the slice
  int items;              // of the slice, all threads
  int length;             // items in one sample of the slice
  int samples;            // in the slice
  int lane, lanes;        // this thread's place among those that share its channels, and how many they are
  int column;             // pack within the tile
  bool active;            // false beyond the last channel

  __device__ __forceinline__ explicit Walk(const Slices& s) {
    // A grid has fewer than 2^31 blocks (launch() checks), so these divisions fit 32 bits.
    const unsigned tiles = static_cast<unsigned>(s.tiles), segments = static_cast<unsigned>(s.segments);
    const int64_t tile = blockIdx.x % tiles;
    slice = blockIdx.x / tiles;
    const unsigned part = static_cast<unsigned>(slice) % segments;
    const int64_t sample = static_cast<int64_t>(static_cast<unsigned>(slice) / segments) * s.samples_per_slice;
    const int64_t begin = static_cast<int64_t>(part) * s.segment;
    const int64_t left = s.positions - begin;
    const int positions = left < s.segment ? static_cast<int>(left) : s.segment;
    const int64_t samples_left = s.samples - sample;
    samples = samples_left < s.samples_per_slice ? static_cast<int>(samples_left) : s.samples_per_slice;
    if constexpr (O == Activation::rows) {
      column = 0;
      lane = threadIdx.x;
      lanes = block_threads;
      channel = tile;
      active = true;
      length = positions / V;
      sample_stride = s.channels * s.positions;
      step = V;
      base = (sample * s.channels + tile) * s.positions + begin;
    } else {
      column = threadIdx.x % s.tile_packs;
      lane = threadIdx.x / s.tile_packs;
      lanes = block_threads / s.tile_packs;
      channel = (tile * s.tile_packs + column) * V;
      active = channel < s.channels;
      length = positions;
      step = s.channels;
      sample_stride = s.positions * s.channels;
      base = (sample * s.positions + begin) * s.channels + channel;
    }
    items = samples * length;
  }

  // How many items this thread visits.
  __device__ __forceinline__ int visits() const {
    return active && lane < items ? (items - lane + lanes - 1) / lanes : 0;
  }

  __device__ __forceinline__ int64_t first_offset() const {
    return base + (lane / length) * sample_stride + (lane % length) * step;
  }

  // load(u, offset) for U items, then use(u, sample, offset) for the same: arrays indexed by u stay in registers.
  template <int U, typename Load, typename Use>
  __device__ __forceinline__ void each(Load&& load, Use&& use) const {
    if (visits() == 0) return;
    const int step_samples = lanes / length, step_items = lanes % length;
    int sample = lane / length, item = lane % length;
    for (int i = lane; i < items; i += U * lanes) {
      int64_t offset[U];
      int owner[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        owner[u] = sample;
        offset[u] = base + sample * sample_stride + item * step;
        sample += step_samples;
        item += step_items;
        if (item >= length) {
          item -= length;
          ++sample;
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (i + u * lanes < items) load(u, offset[u]);
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (i + u * lanes < items) use(u, owner[u], offset[u]);
    }
  }
};

// Blocks a multiprocessor must be able to hold: what carries eight channels per thread needs the registers, the rest
// hides its latency better with more threads. Left unsaid, the compiler spills a word here and there to fit one more.
template <Activation::Order O, int V>
constexpr int min_blocks = O == Activation::rows || V == 1 ? 4 : 2;

// Picks the kernel for a cut: f(Type<T>{}, order, width), the last two integral constants.
template <typename F>
inline int dispatch_walk(const Slices& s, DType dtype, F&& f) {
  int status = cudaErrorInvalidValue;
  dispatch(dtype, [&](auto type) {
    using Rows = std::integral_constant<Activation::Order, Activation::rows>;
    using Lanes = std::integral_constant<Activation::Order, Activation::lanes>;
    using Widest = std::integral_constant<int, pack_width<typename decltype(type)::type>>;
    using One = std::integral_constant<int, 1>;
    const bool rows = s.order == Activation::rows;
    if (s.width == 1) {
      status = rows ? f(type, Rows{}, One{}) : f(type, Lanes{}, One{});
    } else {
      status = rows ? f(type, Rows{}, Widest{}) : f(type, Lanes{}, Widest{});
    }
  });
  return status;
}

}  // namespace avfast
