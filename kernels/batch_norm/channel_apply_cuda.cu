// The element-wise halves: y = act(line(x)), and dx from g, x and, where statistics came from the batch, two numbers
// per channel.
//
// Idea: the same walk as the reductions, so a thread keeps its channels' numbers in registers and no index is divided.
//
// Cost model: forward reads x and writes y once; backward reads grad and x and writes dx once; one launch each. No mask
// is read or written. Not yet measured on a GPU.
//
// Reference: avfast.reference.batch_norm.{blended_bn_forward, blended_bn_backward, channel_affine_*}. ReLU as torch's:
// NaN stays NaN, and the gradient passes where the value is above zero.

#include "channel_line.cuh"

namespace avfast {
namespace {

template <typename T, Activation::Order O, int V>
__global__ void __launch_bounds__(block_threads, min_blocks<O, V>) apply_kernel(
    const T* x, T* y, const __grid_constant__ Slices s, const __grid_constant__ LineSource source, bool relu) {
  using A = Acc<T>;
  constexpr int unroll = 4;
  const Walk<O, V> walk(s);
  Line<A> lines[walk.channels] = {};
  load_lines<A>(source, walk, s, lines);

  Pack<T, V> pack[unroll];
  walk.template each<unroll>(
      [&](int u, int64_t offset) { pack[u].load(x + offset); },
      [&](int u, int, int64_t offset) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const A v = lines[walk.channel_of(j)](to_acc(pack[u].v[j]));
          pack[u].v[j] = from_acc<T>(relu && v <= 0 ? A(0) : v);
        }
        pack[u].store(y + offset);
      });
}

template <typename T, Activation::Order O, int V>
__global__ void __launch_bounds__(block_threads, min_blocks<O, V>) apply_backward_kernel(
    const T* grad, const T* x, T* dx, const __grid_constant__ Slices s, const __grid_constant__ LineSource source,
    Centring centring, bool relu) {
  using A = Acc<T>;
  constexpr int unroll = 2;
  const Walk<O, V> walk(s);
  Line<A> lines[walk.channels] = {};
  load_lines<A>(source, walk, s, lines);
  const bool centred = centring.slope != nullptr;
  A mean_grad[walk.channels] = {}, slope[walk.channels] = {};
  if (centred && walk.active) {
#pragma unroll
    for (int c = 0; c < walk.channels; ++c) {
      mean_grad[c] = static_cast<const A*>(centring.mean_grad)[walk.channel + c];
      slope[c] = static_cast<const A*>(centring.slope)[walk.channel + c];
    }
  }

  Pack<T, V> gs[unroll], xs[unroll];
  walk.template each<unroll>(
      [&](int u, int64_t offset) {
        gs[u].load(grad + offset);
        xs[u].load(x + offset);
      },
      [&](int u, int, int64_t offset) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const int c = walk.channel_of(j);
          const A v = to_acc(xs[u].v[j]);
          A g = !relu || lines[c](v) > 0 ? to_acc(gs[u].v[j]) : A(0);
          if (centred) g = fma(lines[c].mean - v, slope[c], g - mean_grad[c]);
          gs[u].v[j] = from_acc<T>(lines[c].scale * g);
        }
        gs[u].store(dx + offset);
      });
}

}  // namespace

int launch_apply(
    const Slices& s, DType dtype, const LineSource& source, bool relu, const void* data, void* y, void* stream) {
  return dispatch_walk(s, dtype, [&](auto type, auto order, auto width) {
    using T = typename decltype(type)::type;
    return launch(
        apply_kernel<T, decltype(order)::value, decltype(width)::value>, s.blocks(), block_threads, stream,
        static_cast<const T*>(data), static_cast<T*>(y), s, source, relu);
  });
}

int launch_apply_backward(
    const Slices& s, DType dtype, const LineSource& source, const Centring& centring, bool relu, const void* grad,
    const void* data, void* dx, void* stream) {
  return dispatch_walk(s, dtype, [&](auto type, auto order, auto width) {
    using T = typename decltype(type)::type;
    return launch(
        apply_backward_kernel<T, decltype(order)::value, decltype(width)::value>, s.blocks(), block_threads, stream,
        static_cast<const T*>(grad), static_cast<const T*>(data), static_cast<T*>(dx), s, source, centring, relu);
  });
}

}  // namespace avfast
