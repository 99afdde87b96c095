#include "../kernels/fusion/concat_linear.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "masked_concat_linear";

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

struct ConcatInputs {
  Tensor a, v, weight;
  std::optional<Tensor> mask_a, mask_v;
  ConcatLinearArgs args;

  ConcatInputs(
      const Tensor& a_, const Tensor& v_, const Tensor& weight_, const std::optional<Tensor>& mask_a_,
      const std::optional<Tensor>& mask_v_)
      : a(dense(a_)), v(dense(v_)), weight(dense(weight_)) {
    STD_TORCH_CHECK(a.dim() == 2 && v.dim() == 2 && v.size(0) == a.size(0), "avfast.", op, ": a, v: expected shape [R, D]");
    STD_TORCH_CHECK(
        weight.dim() == 2 && weight.size(1) == a.size(1) + v.size(1), "avfast.", op, ": weight: expected shape [C, Da + Dv]");
    const DType dtype = dtype_of(a, op, "a");
    STD_TORCH_CHECK(
        dtype_of(v, op, "v") == dtype && dtype_of(weight, op, "weight") == dtype, "avfast.", op, ": v, weight: expected the dtype of a");
    args = {dtype, a.size(0), a.size(1), v.size(1), weight.size(0), a.const_data_ptr(), v.const_data_ptr(),
            weight.const_data_ptr(), rows_of(mask_a_, mask_a, "mask_a"), rows_of(mask_v_, mask_v, "mask_v")};
  }

  const bool* rows_of(const std::optional<Tensor>& mask, std::optional<Tensor>& kept, const char* argument) const {
    if (!mask) return nullptr;
    STD_TORCH_CHECK(
        mask->dim() == 1 && mask->size(0) == a.size(0) && mask->scalar_type() == ScalarType::Bool, "avfast.", op, ": ", argument,
        ": expected bool [R]");
    kept = dense(*mask);
    return static_cast<const bool*>(kept->const_data_ptr());
  }
};

}  // namespace

Tensor concat_linear_fwd(
    Tensor a, Tensor v, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v) {
  const ConcatInputs in(a, v, weight, mask_a, mask_v);
  std::optional<Tensor> b;
  if (bias) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->size(0) == in.args.classes && dtype_of(*bias, op, "bias") == in.args.dtype, "avfast.", op,
        ": bias: expected shape [C] and the dtype of a");
    b = dense(*bias);
  }
  Tensor out = allocate({in.args.rows, in.args.classes}, {in.args.classes, 1}, a.scalar_type(), a);
  kernels().concat_linear_fwd({in.args, b ? b->const_data_ptr() : nullptr, out.mutable_data_ptr()}, torch_threads());
  return out;
}

Tensors4 concat_linear_bwd(
    Tensor grad, Tensor a, Tensor v, Tensor weight, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v, bool need_inputs,
    bool need_weight, bool need_bias) {
  const ConcatInputs in(a, v, weight, mask_a, mask_v);
  const ConcatLinearArgs& args = in.args;
  STD_TORCH_CHECK(
      grad.dim() == 2 && grad.size(0) == args.rows && grad.size(1) == args.classes && dtype_of(grad, op, "grad") == args.dtype,
      "avfast.", op, ": grad: expected shape and type of the output");
  const Tensor g = dense(grad);
  const auto made = [&](bool needed, int64_t rows, int64_t columns) {
    return needed ? allocate({rows, columns}, {columns, 1}, a.scalar_type(), a) : allocate_vector(0, a.scalar_type(), a);
  };
  Tensor da = made(need_inputs, args.rows, args.depth_a), dv = made(need_inputs, args.rows, args.depth_v);
  Tensor dweight = made(need_weight, args.classes, args.depth_a + args.depth_v);
  Tensor dbias = allocate_vector(need_bias ? args.classes : 0, a.scalar_type(), a);
  const auto where = [](bool needed, Tensor& x) { return needed ? x.mutable_data_ptr() : nullptr; };
  kernels().concat_linear_bwd(
      {args, g.const_data_ptr(), where(need_inputs, da), where(need_inputs, dv), where(need_weight, dweight), where(need_bias, dbias)},
      torch_threads());
  return {da, dv, dweight, dbias};
}

}  // namespace avfast
