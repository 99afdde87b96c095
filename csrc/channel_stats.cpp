#include "launch.h"
#include "ops.h"

namespace avfast {

__attribute__((weak)) int64_t channel_stats_cuda_workspace(const Activation&);
__attribute__((weak)) int channel_stats_cuda(const ChannelStatsArgs&, void*, void*);

Tensors4 channel_stats_fwd(Tensor input, double dead_threshold) {
  const Dense x = Dense::of(input, "channel_stats", "x");
  const int64_t c = x.view.channels;
  Tensor mean = allocate_vector(c, ScalarType::Double, x.tensor), var = allocate_vector(c, ScalarType::Double, x.tensor);
  Tensor zeros = allocate_vector(c, ScalarType::Long, x.tensor), dead = allocate_vector(c, ScalarType::Long, x.tensor);
  const ChannelStatsArgs args{
      x.view,
      x.tensor.const_data_ptr(),
      dead_threshold,
      static_cast<double*>(mean.mutable_data_ptr()),
      static_cast<double*>(var.mutable_data_ptr()),
      static_cast<int64_t*>(zeros.mutable_data_ptr()),
      static_cast<int64_t*>(dead.mutable_data_ptr()),
  };
  launch(
      x.tensor, "channel_stats",
      [&](const KernelTable& table, const Parallel& parallel) { table.channel_stats(args, parallel); },
      [&](void* stream) {
        const Tensor workspace = cuda_workspace(channel_stats_cuda_workspace(x.view), x.tensor);
        return channel_stats_cuda(args, workspace.mutable_data_ptr(), stream);
      });
  return {mean, var, zeros, dead};
}

}  // namespace avfast
