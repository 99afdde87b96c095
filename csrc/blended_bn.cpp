#include "launch.h"
#include "ops.h"

namespace avfast {

__attribute__((weak)) int64_t blended_bn_fwd_cuda_workspace(const Activation&);
__attribute__((weak)) int blended_bn_fwd_cuda(const BlendedBnFwdArgs&, void*, void*);
__attribute__((weak)) int64_t blended_bn_bwd_cuda_workspace(const Activation&);
__attribute__((weak)) int blended_bn_bwd_cuda(const BlendedBnBwdArgs&, void*, void*);

namespace {

constexpr const char* op = "blended_batch_norm";

// The five parameter vectors, checked and kept alive while the kernel reads them.
struct Params {
  Tensor weight, bias, new_weight, new_bias, alpha;

  Params(const Activation& x, Tensor w, Tensor b, Tensor nw, Tensor nb, Tensor a)
      : weight(parameter(w, x.channels, false, accumulation_type(x.dtype), op, "weight")),
        bias(parameter(b, x.channels, false, accumulation_type(x.dtype), op, "bias")),
        new_weight(parameter(nw, x.channels, false, accumulation_type(x.dtype), op, "new_weight")),
        new_bias(parameter(nb, x.channels, false, accumulation_type(x.dtype), op, "new_bias")),
        alpha(parameter(a, x.channels, true, accumulation_type(x.dtype), op, "alpha")) {}

  BlendedBnParams pointers() const {
    return {weight.const_data_ptr(), bias.const_data_ptr(), new_weight.const_data_ptr(), new_bias.const_data_ptr(),
            alpha.const_data_ptr(), alpha.numel() == weight.numel()};
  }
};

}  // namespace

Tensors3 blended_bn_fwd(
    Tensor input, Tensor weight, Tensor bias, Tensor new_weight, Tensor new_bias, Tensor alpha, double eps, bool relu) {
  const Dense x = Dense::of(input, op, "x");
  const Params params(x.view, weight, bias, new_weight, new_bias, alpha);
  const ScalarType wide = accumulation_type(x.view.dtype);
  Tensor y = x.empty_like();
  Tensor mean = allocate_vector(x.view.channels, wide, x.tensor), var = allocate_vector(x.view.channels, wide, x.tensor);
  const BlendedBnFwdArgs args{
      x.view, params.pointers(), eps, relu, x.tensor.const_data_ptr(), y.mutable_data_ptr(), mean.mutable_data_ptr(),
      var.mutable_data_ptr()};
  launch(
      x.tensor, op,
      [&](const KernelTable& table, const Parallel& parallel) { table.blended_bn_fwd(args, parallel); },
      [&](void* stream) {
        const Tensor workspace = cuda_workspace(blended_bn_fwd_cuda_workspace(x.view), x.tensor);
        return blended_bn_fwd_cuda(args, workspace.mutable_data_ptr(), stream);
      });
  return {y, mean, var};
}

Tensors6 blended_bn_bwd(
    Tensor grad, Tensor input, Tensor mean, Tensor var, Tensor weight, Tensor bias, Tensor new_weight, Tensor new_bias,
    Tensor alpha, double eps, bool relu) {
  const Dense x = Dense::of(input, op, "x");
  const Params params(x.view, weight, bias, new_weight, new_bias, alpha);
  const int64_t c = x.view.channels;
  const ScalarType wide = accumulation_type(x.view.dtype);
  grad = x.match(grad);
  mean = parameter(mean, c, false, wide, op, "mean");
  var = parameter(var, c, false, wide, op, "var");
  Tensor dx = x.empty_like();
  std::array<Tensor, 5> d;
  for (Tensor& t : d) t = allocate_vector(c, wide, x.tensor);
  const BlendedBnBwdArgs args{
      x.view,
      params.pointers(),
      eps,
      relu,
      grad.const_data_ptr(),
      x.tensor.const_data_ptr(),
      mean.const_data_ptr(),
      var.const_data_ptr(),
      dx.mutable_data_ptr(),
      d[0].mutable_data_ptr(),
      d[1].mutable_data_ptr(),
      d[2].mutable_data_ptr(),
      d[3].mutable_data_ptr(),
      d[4].mutable_data_ptr(),
  };
  launch(
      x.tensor, op,
      [&](const KernelTable& table, const Parallel& parallel) { table.blended_bn_bwd(args, parallel); },
      [&](void* stream) {
        const Tensor workspace = cuda_workspace(blended_bn_bwd_cuda_workspace(x.view), x.tensor);
        return blended_bn_bwd_cuda(args, workspace.mutable_data_ptr(), stream);
      });
  return {dx, d[0], d[1], d[2], d[3], d[4]};
}

}  // namespace avfast
