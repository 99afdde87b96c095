// y = act(line_c(x)): what blended batch norm and channel_affine both are once the channel's numbers are known.
//
//   line(x) = (x - mean) scale + shift
//
//   channel_affine   mean = 0, scale and shift as given
//   blended_bn       mean of the batch, scale = (alpha g1 + (1 - alpha) g2) / sqrt(var + eps),
//                    shift = alpha b1 + (1 - alpha) b2, in double from the stored mean and variance
//
// Forward and backward call the same line(), so the backward recomputes the activation's sign bit for bit and nothing
// but x is saved. Subtracting the mean first keeps the digits that (x scale + (shift - mean scale)) would cancel.
#pragma once

#include "channel_reduce.cuh"

namespace avfast {

// Where a channel's line comes from. Vectors have the accumulation type; null `var` means channel_affine.
struct LineSource {
  BlendedBnParams params;  // channel_affine: scale in weight, shift in bias
  const void* mean;
  const void* var;
  double eps;
};

inline LineSource affine_source(const void* scale, const void* shift) {
  LineSource source{};
  source.params.weight = scale;
  source.params.bias = shift;
  return source;
}

template <typename A>
struct Line {
  A mean, scale, shift;

  __device__ __forceinline__ A operator()(A x) const { return fma(x - mean, scale, shift); }
};

template <typename A>
__device__ __forceinline__ double number(const void* vector, int64_t i) {
  return double(static_cast<const A*>(vector)[i]);
}

template <typename A>
__device__ inline Line<A> make_line(const LineSource& source, int64_t c) {
  const BlendedBnParams& p = source.params;
  if (!source.var) return {A(0), A(number<A>(p.weight, c)), A(number<A>(p.bias, c))};
  const double alpha = number<A>(p.alpha, p.alpha_per_channel ? c : 0), rest = 1 - alpha;
  const double scale = alpha * number<A>(p.weight, c) + rest * number<A>(p.new_weight, c);
  const double shift = alpha * number<A>(p.bias, c) + rest * number<A>(p.new_bias, c);
  const double rstd = 1 / sqrt(number<A>(source.var, c) + source.eps);
  return {A(number<A>(source.mean, c)), A(scale * rstd), A(shift)};
}

// The lines of the block's tile, one thread per channel, then each thread's own into registers.
template <typename A, Activation::Order O, int V>
__device__ __forceinline__ void load_lines(
    const LineSource& source, const Walk<O, V>& walk, const Slices& s, Line<A> (&lines)[Walk<O, V>::channels]) {
  __shared__ Line<A> shared[O == Activation::rows ? 1 : warp_size * V];
  constexpr int per_pack = Walk<O, V>::channels;
  const int64_t first = walk.channel - walk.column * per_pack;
  for (int i = threadIdx.x; i < s.tile_packs * per_pack; i += block_threads)
    if (first + i < s.channels) shared[i] = make_line<A>(source, first + i);
  __syncthreads();
  if (walk.active)
#pragma unroll
    for (int c = 0; c < per_pack; ++c) lines[c] = shared[walk.column * per_pack + c];
}

// What centring takes away: dx = scale (g' - mean_grad - (x - mean) slope). Null where statistics are constants.
struct Centring {
  const void* mean_grad;  // [C] accumulation type
  const void* slope;
};

// Defined in channel_gradient_cuda.cu and channel_apply_cuda.cu; `s` is the cut of all tensors passed.

// Per channel and slice: sum(g') and sum(g' (x - mean)).
int launch_gradient_sums(
    const Slices& s, DType dtype, const LineSource& source, bool relu, const void* grad, const void* data, double2* out,
    void* stream);

int launch_apply(
    const Slices& s, DType dtype, const LineSource& source, bool relu, const void* data, void* y, void* stream);

int launch_apply_backward(
    const Slices& s, DType dtype, const LineSource& source, const Centring& centring, bool relu, const void* grad,
    const void* data, void* dx, void* stream);

}  // namespace avfast
