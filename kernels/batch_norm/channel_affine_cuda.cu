// y = act(scale x + shift) per channel: blended batch norm in evaluation or with frozen statistics.
//
// Idea: the line of channel_line.cuh with mean 0, so forward is the same apply kernel and backward the same two sums:
// dscale = sum(g' x), dshift = sum(g'), dx = scale g'.
//
// Cost model: forward one launch, 2 activations moved; backward three launches, 5 activations moved (grad and x are read
// twice: by the sums and by dx). Not yet measured on a GPU.
//
// Reference: avfast.reference.batch_norm.channel_affine_{forward, backward}.

#include "channel_line.cuh"

namespace avfast {
namespace {

template <typename A>
__global__ void __launch_bounds__(finish_threads)
finish_affine_kernel(const __grid_constant__ Slices s, const double2* sums, A* dscale, A* dshift) {
  const int64_t channel = finish_channel();
  if (channel >= s.channels) return;
  const double2 t = finish_sums(sums + channel * s.count, s.count);
  if (threadIdx.x % warp_size == 0) {
    dshift[channel] = A(t.x);
    dscale[channel] = A(t.y);
  }
}

}  // namespace

int channel_affine_fwd_cuda(const ChannelAffineFwdArgs& args, void* stream) {
  const Slices s = slice(args.x, {args.data, args.y});
  return launch_apply(s, args.x.dtype, affine_source(args.scale, args.shift), args.relu, args.data, args.y, stream);
}

int64_t channel_affine_bwd_cuda_workspace(const Activation& x) {
  return partials_count(x) * static_cast<int64_t>(sizeof(double2));
}

int channel_affine_bwd_cuda(const ChannelAffineBwdArgs& args, void* workspace, void* stream) {
  const DType dtype = args.x.dtype;
  const Slices s = slice(args.x, {args.grad, args.data, args.dx});
  const LineSource source = affine_source(args.scale, args.shift);
  auto* sums = static_cast<double2*>(workspace);
  int status = launch_gradient_sums(s, dtype, source, args.relu, args.grad, args.data, sums, stream);
  if (status != cudaSuccess) return status;
  auto finish = [&](auto* dscale) {
    using A = std::remove_pointer_t<decltype(dscale)>;
    status = launch(
        finish_affine_kernel<A>, finish_blocks(s.channels), finish_threads, stream, s,
        static_cast<const double2*>(sums), dscale, static_cast<A*>(args.dshift));
  };
  if (dtype == DType::f64) finish(static_cast<double*>(args.dscale));
  else finish(static_cast<float*>(args.dscale));
  if (status != cudaSuccess) return status;
  return launch_apply_backward(s, dtype, source, Centring{}, args.relu, args.grad, args.data, args.dx, stream);
}

}  // namespace avfast
