#include "in_batch.h"

namespace avfast {

namespace {

constexpr const char* op = "self_nce";

struct Self {
  std::optional<LabelRanks> ranks;
  SelfNceArgs args;
  ScalarType wide;

  Self(const Tensor& z, const Tensor& temperature, const std::optional<Tensor>& labels, bool normalize)
      : args{rows_of(z, op, "z")}, wide(accumulation_type(args.z.dtype)) {
    if (labels) ranks.emplace(*labels, args.z.count, *labels, args.z.count, op);
    STD_TORCH_CHECK(
        labels || args.z.count % 2 == 0, "avfast.", op, ": z: expected an even number of rows without labels, got ", args.z.count);
    args.temperature = wide_scalar(temperature, wide, op, "temperature");
    args.labels = ranks ? ranks->a.data() : nullptr;
    args.count = nullptr;
    args.normalize = normalize;
  }
};

}  // namespace

Tensors3 self_nce_fwd(Tensor z, Tensor temperature, std::optional<Tensor> labels, bool normalize) {
  Self self(z, temperature, labels, normalize);
  const int64_t n = self.args.z.count;
  Tensor lse = allocate_vector(n, self.wide, z), target = allocate_vector(n, self.wide, z);
  Tensor count = allocate_vector(n, ScalarType::Int, z);
  auto* counts = static_cast<int32_t*>(count.mutable_data_ptr());
  if (self.ranks) {
    self.ranks->count(counts, 0);
    self.args.count = counts;
  } else {
    std::fill_n(counts, n, 1);
  }
  const SelfNceFwdArgs args{self.args, lse.mutable_data_ptr(), target.mutable_data_ptr()};
  kernels().self_nce_fwd(args, torch_threads());
  return {lse, target, count};
}

Tensors2 self_nce_bwd(
    Tensor grad, Tensor z, Tensor temperature, Tensor lse, std::optional<Tensor> labels, Tensor count, bool normalize) {
  Self self(z, temperature, labels, normalize);
  const int64_t n = self.args.z.count;
  grad = wide_vector(grad, n, self.wide, op, "grad");
  lse = wide_vector(lse, n, self.wide, op, "lse");
  if (self.ranks) {
    STD_TORCH_CHECK(
        count.dim() == 1 && count.numel() == n && count.scalar_type() == ScalarType::Int && count.is_contiguous(), "avfast.", op,
        ": count: expected contiguous int32 of shape [N]");
    self.args.count = static_cast<const int32_t*>(count.const_data_ptr());
  }
  Tensor dz = gradient_like(z), dtemperature = allocate_vector(1, self.wide, z);
  const SelfNceBwdArgs args{
      self.args, grad.const_data_ptr(), lse.const_data_ptr(), dz.mutable_data_ptr(), dtemperature.mutable_data_ptr()};
  kernels().self_nce_bwd(args, torch_threads());
  return {dz, dtemperature};
}

}  // namespace avfast
