// The two sums every batch-norm backward needs, per channel and slice: sum(g') and sum(g' (x - mean)), where g' is the
// incoming gradient where the activation let the value through and 0 elsewhere.
//
// Idea: recompute the activation's sign from x instead of saving a mask; sum around the mean, so that the caller
// multiplies by 1 / std once per channel instead of once per element.
//
// Cost model: grad and x read once, 16 bytes per channel and slice written; one launch. Not yet measured on a GPU.
//
// Reference: the sums in avfast.reference.batch_norm.{blended_bn_backward, channel_affine_backward}.

#include "channel_line.cuh"

namespace avfast {
namespace {

template <typename T, Activation::Order O, int V>
__global__ void __launch_bounds__(block_threads, min_blocks<O, V>) gradient_sums_kernel(
    const T* grad, const T* x, const __grid_constant__ Slices s, const __grid_constant__ LineSource source, bool relu,
    double2* out) {
  using A = Acc<T>;
  constexpr int unroll = 2;  // of two tensors: four loads in flight
  __shared__ double shared[2][block_threads];

  const Walk<O, V> walk(s);
  Line<A> lines[walk.channels] = {};
  load_lines<A>(source, walk, s, lines);

  Chains<A, O, V> chains;
  Pack<T, V> gs[unroll], xs[unroll];
  walk.template each<unroll>(
      [&](int u, int64_t offset) {
        gs[u].load(grad + offset);
        xs[u].load(x + offset);
      },
      [&](int u, int, int64_t) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Line<A>& line = lines[walk.channel_of(j)];
          const A v = to_acc(xs[u].v[j]);
          const A g = !relu || line(v) > 0 ? to_acc(gs[u].v[j]) : A(0);
          chains.add(u, j, g, v - line.mean);
        }
      });

#pragma unroll
  for (int c = 0; c < walk.channels; ++c) {
    const double2 t = chains.total(c);
    double v[2] = {t.x, t.y};
    sum_columns(v, s.tile_packs, shared);
    if (threadIdx.x < s.tile_packs && walk.active) out[(walk.channel + c) * s.count + walk.slice] = {v[0], v[1]};
  }
}

}  // namespace

int launch_gradient_sums(
    const Slices& s, DType dtype, const LineSource& source, bool relu, const void* grad, const void* data, double2* out,
    void* stream) {
  return dispatch_walk(s, dtype, [&](auto type, auto order, auto width) {
    using T = typename decltype(type)::type;
    return launch(
        gradient_sums_kernel<T, decltype(order)::value, decltype(width)::value>, s.blocks(), block_threads, stream,
        static_cast<const T*>(grad), static_cast<const T*>(data), s, source, relu, out);
  });
}

}  // namespace avfast
