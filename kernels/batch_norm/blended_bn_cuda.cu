// Blended batch norm in training: two batch norms over the same batch statistics are one with a blended affine.
//
// Forward    1. moments of x per slice          read x
//            2. mean and variance per channel   a warp per channel, double
//            3. y = act(line(x))                read x, write y
// Backward   1. sum(g'), sum(g' (x - mean))     read grad and x
//            2. S1, S2, six gradients           a warp per channel, double
//            3. dx                              read grad and x, write dx
//
// With S1 = sum g', S2 = sum g' xhat, n = N S, G the blended scale and r = 1 / sqrt(var + eps):
//
//   dx = G r (g' - S1 / n - xhat S2 / n)
//   dg1 = alpha S2   dg2 = (1 - alpha) S2   db1 = alpha S1   db2 = (1 - alpha) S1
//   dalpha = (g1 - g2) S2 + (b1 - b2) S1
//
// Cost model: 3 activations moved forward, 5 backward, three launches each; saved for backward: x and 2 C numbers. The
// two-layer eager form moves about 15 forward and saves 4. Not yet measured on a GPU.
//
// Reference: avfast.reference.batch_norm.blended_bn_{forward, backward}; Wang et al., "Revisiting Pre-training in
// Audio-Visual Learning" (2023).

#include "channel_line.cuh"
#include "channel_moments.cuh"

namespace avfast {
namespace {

template <typename T>
__global__ void __launch_bounds__(finish_threads) finish_forward_kernel(
    const __grid_constant__ BlendedBnFwdArgs args, const __grid_constant__ Slices s, const double2* sums) {
  using A = Acc<T>;
  const int64_t channel = finish_channel();
  if (channel >= s.channels) return;
  const MeanVar moments = finish_moments(static_cast<const T*>(args.data), s, sums, channel);
  if (threadIdx.x % warp_size == 0) {
    static_cast<A*>(args.mean)[channel] = A(moments.mean);
    static_cast<A*>(args.var)[channel] = A(moments.var);
  }
}

template <typename A>
__global__ void __launch_bounds__(finish_threads) finish_backward_kernel(
    const __grid_constant__ BlendedBnBwdArgs args, const __grid_constant__ Slices s, const double2* sums, A* mean_grad,
    A* slope) {
  const int64_t c = finish_channel();
  if (c >= s.channels) return;
  const double2 t = finish_sums(sums + c * s.count, s.count);
  if (threadIdx.x % warp_size != 0) return;

  const BlendedBnParams& p = args.params;
  const double n = double(s.samples) * double(s.positions);
  const double rstd = 1 / sqrt(number<A>(args.var, c) + args.eps);
  const double s1 = t.x, s2 = n > 0 ? t.y * rstd : 0.0;  // the variance of an empty batch is NaN, its gradients are 0
  mean_grad[c] = A(s1 / n);
  slope[c] = A(s2 * rstd / n);

  const double alpha = number<A>(p.alpha, p.alpha_per_channel ? c : 0), rest = 1 - alpha;
  static_cast<A*>(args.dweight)[c] = A(alpha * s2);
  static_cast<A*>(args.dbias)[c] = A(alpha * s1);
  static_cast<A*>(args.dnew_weight)[c] = A(rest * s2);
  static_cast<A*>(args.dnew_bias)[c] = A(rest * s1);
  const double scale_gap = number<A>(p.weight, c) - number<A>(p.new_weight, c);
  const double shift_gap = number<A>(p.bias, c) - number<A>(p.new_bias, c);
  static_cast<A*>(args.dalpha)[c] = A(scale_gap * s2 + shift_gap * s1);
}

}  // namespace

int64_t blended_bn_fwd_cuda_workspace(const Activation& x) {
  return partials_count(x) * static_cast<int64_t>(sizeof(double2));
}

int blended_bn_fwd_cuda(const BlendedBnFwdArgs& args, void* workspace, void* stream) {
  const DType dtype = args.x.dtype;
  const Slices s = slice(args.x, {args.data, args.y});
  const Partials partials{static_cast<double2*>(workspace), nullptr};
  int status = launch_moments<false>(s, dtype, args.data, 0.0, partials, stream);
  if (status != cudaSuccess) return status;
  dispatch(dtype, [&](auto type) {
    status = launch(
        finish_forward_kernel<typename decltype(type)::type>, finish_blocks(s.channels), finish_threads, stream, args, s,
        partials.sums);
  });
  if (status != cudaSuccess) return status;
  return launch_apply(s, dtype, {args.params, args.mean, args.var, args.eps}, args.relu, args.data, args.y, stream);
}

int64_t blended_bn_bwd_cuda_workspace(const Activation& x) {
  const int64_t accumulator = x.dtype == DType::f64 ? 8 : 4;
  return partials_count(x) * static_cast<int64_t>(sizeof(double2)) + 2 * x.channels * accumulator;
}

int blended_bn_bwd_cuda(const BlendedBnBwdArgs& args, void* workspace, void* stream) {
  const DType dtype = args.x.dtype;
  const Slices s = slice(args.x, {args.grad, args.data, args.dx});
  const LineSource source{args.params, args.mean, args.var, args.eps};
  auto* sums = static_cast<double2*>(workspace);
  int status = launch_gradient_sums(s, dtype, source, args.relu, args.grad, args.data, sums, stream);
  if (status != cudaSuccess) return status;

  Centring centring{};
  auto finish = [&](auto* mean_grad) {
    using A = std::remove_pointer_t<decltype(mean_grad)>;
    A* slope = mean_grad + s.channels;
    centring = {mean_grad, slope};
    status = launch(
        finish_backward_kernel<A>, finish_blocks(s.channels), finish_threads, stream, args, s,
        static_cast<const double2*>(sums), mean_grad, slope);
  };
  void* numbers = sums + partials_count(args.x);
  if (dtype == DType::f64) finish(static_cast<double*>(numbers));
  else finish(static_cast<float*>(numbers));
  if (status != cudaSuccess) return status;
  return launch_apply_backward(s, dtype, source, centring, args.relu, args.grad, args.data, args.dx, stream);
}

}  // namespace avfast
