// Mean, biased variance, zero count and dead-sample count per channel in one read of the activation.
//
// Idea: cut each channel into slices until the grid fills the card whatever C is (activation_walk.cuh), reduce a slice
// per block around a shift (channel_moments.cuh), and combine the slices of a channel with one warp in double.
//
// Cost model: the bytes of x once; 24 bytes per channel and slice written and read again (a slice is 4096 elements or
// more, so under 0.6 % of a 16-bit x on small inputs and under 0.1 % on large ones); two launches. Ten (rows) to fourteen
// (lanes) instructions per 16-bit element, counted in sm_90 machine code: 60 to 80 % of an H100's issue slots at full
// bandwidth, so memory should stay the limit. Not yet measured on a GPU.
//
// A sample is dead when |x| <= threshold on all of its positions. Blocks that hold whole samples count them; where one
// map is cut into segments, each says whether it is all zero and the second kernel asks for all segments of a sample.
//
// Reference: avfast.reference.batch_norm.channel_stats. The comparison is that of double(|x|) <= threshold.


#include "channel_moments.cuh"

namespace avfast {
namespace {

template <typename T>
__global__ void __launch_bounds__(finish_threads)
finish_stats_kernel(const __grid_constant__ ChannelStatsArgs args, const __grid_constant__ Slices s, Partials in) {
  const int64_t channel = finish_channel();
  if (channel >= s.channels) return;  // whole warps leave: the shuffles below stay full
  const MeanVar moments = finish_moments(static_cast<const T*>(args.data), s, in.sums, channel);

  // 64-bit from here on: a slice's counts fit an int, a channel's need not.
  unsigned long long zeros = 0, dead = 0;
  const int2* counts = in.counts + channel * s.count;
  const int64_t groups = s.count / s.segments;
  for (int64_t g = threadIdx.x % warp_size; g < groups; g += warp_size) {
    int64_t dead_here = 0;
    for (int64_t j = 0; j < s.segments; ++j) {
      zeros += counts[g * s.segments + j].x;
      dead_here += counts[g * s.segments + j].y;
    }
    dead += s.segments == 1 ? dead_here : dead_here == s.segments;
  }
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    zeros += __shfl_xor_sync(full_warp, zeros, offset);
    dead += __shfl_xor_sync(full_warp, dead, offset);
  }
  if (threadIdx.x % warp_size == 0) {
    args.mean[channel] = moments.mean;
    args.var[channel] = moments.var;
    args.zeros[channel] = static_cast<int64_t>(zeros);
    args.dead[channel] = static_cast<int64_t>(s.position_is_sample ? zeros : dead);
  }
}

// torch compares a float tensor with a number rounded to float; so do we, or 0.1f would be above a threshold of 0.1.
double float_limit(double threshold) {
  return static_cast<float>(threshold);
}

}  // namespace

int64_t channel_stats_cuda_workspace(const Activation& x) {
  return partials_count(x) * static_cast<int64_t>(sizeof(double2) + sizeof(int2));
}

int channel_stats_cuda(const ChannelStatsArgs& args, void* workspace, void* stream) {
  Partials partials;
  partials.sums = static_cast<double2*>(workspace);
  partials.counts = reinterpret_cast<int2*>(partials.sums + partials_count(args.x));
  const double limit = args.x.dtype == DType::f64 ? args.dead_threshold : float_limit(args.dead_threshold);
  const Slices s = slice(args.x, {args.data});
  int status = launch_moments<true>(s, args.x.dtype, args.data, limit, partials, stream);
  if (status != cudaSuccess) return status;
  dispatch(args.x.dtype, [&](auto type) {
    status = launch(
        finish_stats_kernel<typename decltype(type)::type>, finish_blocks(s.channels), finish_threads, stream, args, s,
        partials);
  });
  return status;
}

}  // namespace avfast
