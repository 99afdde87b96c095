#include "launch.h"
#include "ops.h"

namespace avfast {

__attribute__((weak)) int channel_affine_fwd_cuda(const ChannelAffineFwdArgs&, void*);
__attribute__((weak)) int64_t channel_affine_bwd_cuda_workspace(const Activation&);
__attribute__((weak)) int channel_affine_bwd_cuda(const ChannelAffineBwdArgs&, void*, void*);

namespace {
constexpr const char* op = "channel_affine";
}

Tensor channel_affine_fwd(Tensor input, Tensor scale, Tensor shift, bool relu) {
  const Dense x = Dense::of(input, op, "x");
  const int64_t c = x.view.channels;
  const ScalarType wide = accumulation_type(x.view.dtype);
  scale = parameter(scale, c, false, wide, op, "scale");
  shift = parameter(shift, c, false, wide, op, "shift");
  Tensor y = x.empty_like();
  const ChannelAffineFwdArgs args{
      x.view, relu, x.tensor.const_data_ptr(), scale.const_data_ptr(), shift.const_data_ptr(), y.mutable_data_ptr()};
  launch(
      x.tensor, op,
      [&](const KernelTable& table, const Parallel& parallel) { table.channel_affine_fwd(args, parallel); },
      [&](void* stream) { return channel_affine_fwd_cuda(args, stream); });
  return y;
}

Tensors3 channel_affine_bwd(Tensor grad, Tensor input, Tensor scale, Tensor shift, bool relu) {
  const Dense x = Dense::of(input, op, "x");
  const int64_t c = x.view.channels;
  const ScalarType wide = accumulation_type(x.view.dtype);
  grad = x.match(grad);
  scale = parameter(scale, c, false, wide, op, "scale");
  shift = parameter(shift, c, false, wide, op, "shift");
  Tensor dx = x.empty_like(), dscale = allocate_vector(c, wide, x.tensor), dshift = allocate_vector(c, wide, x.tensor);
  const ChannelAffineBwdArgs args{
      x.view,
      relu,
      grad.const_data_ptr(),
      x.tensor.const_data_ptr(),
      scale.const_data_ptr(),
      shift.const_data_ptr(),
      dx.mutable_data_ptr(),
      dscale.mutable_data_ptr(),
      dshift.mutable_data_ptr(),
  };
  launch(
      x.tensor, op,
      [&](const KernelTable& table, const Parallel& parallel) { table.channel_affine_bwd(args, parallel); },
      [&](void* stream) {
        const Tensor workspace = cuda_workspace(channel_affine_bwd_cuda_workspace(x.view), x.tensor);
        return channel_affine_bwd_cuda(args, workspace.mutable_data_ptr(), stream);
      });
  return {dx, dscale, dshift};
}

}  // namespace avfast
