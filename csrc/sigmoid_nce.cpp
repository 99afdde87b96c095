#include "in_batch.h"

namespace avfast {

namespace {

constexpr const char* op = "sigmoid_nce";

SigmoidNceArgs arguments(const Tensor& a, const Tensor& b, const Tensor& scale, const Tensor& bias, int64_t positive, bool normalize) {
  SigmoidNceArgs args{rows_of(a, op, "a"), rows_of(b, op, "b")};
  check_alike(args.a, args.b, op);
  check_positive(args.a, args.b, positive, op);
  const ScalarType wide = accumulation_type(args.a.dtype);
  args.scale = wide_scalar(scale, wide, op, "scale");
  args.bias = wide_scalar(bias, wide, op, "bias");
  args.positive = positive;
  args.normalize = normalize;
  return args;
}

}  // namespace

Tensor sigmoid_nce_fwd(Tensor a, Tensor b, Tensor scale, Tensor bias, int64_t positive, bool normalize) {
  SigmoidNceArgs args = arguments(a, b, scale, bias, positive, normalize);
  Tensor loss = allocate_vector(args.a.count, accumulation_type(args.a.dtype), a);
  args.loss = loss.mutable_data_ptr();
  kernels().sigmoid_nce(args, torch_threads());
  return loss;
}

Tensors5 sigmoid_nce_bwd(
    Tensor grad_row, Tensor a, Tensor b, Tensor scale, Tensor bias, int64_t positive, bool normalize) {
  SigmoidNceArgs args = arguments(a, b, scale, bias, positive, normalize);
  const ScalarType wide = accumulation_type(args.a.dtype);
  grad_row = wide_vector(grad_row, args.a.count, wide, op, "grad_row");
  Tensor loss = allocate_vector(args.a.count, wide, a), da = gradient_like(a), db = gradient_like(b);
  Tensor dscale = allocate_vector(1, wide, a), dbias = allocate_vector(1, wide, a);
  args.backward = true;
  args.grad_row = grad_row.const_data_ptr();
  args.loss = loss.mutable_data_ptr();
  args.da = da.mutable_data_ptr();
  args.db = db.mutable_data_ptr();
  args.dscale = dscale.mutable_data_ptr();
  args.dbias = dbias.mutable_data_ptr();
  kernels().sigmoid_nce(args, torch_threads());
  return {loss, da, db, dscale, dbias};
}

}  // namespace avfast
