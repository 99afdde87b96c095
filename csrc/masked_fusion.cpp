#include "../kernels/fusion/masked_fusion.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "masked_fusion";

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// A mask or weight of shape [1 or R, 1 or D]; a stride of 0 repeats.
struct Spread {
  std::optional<Tensor> tensor;
  int64_t stride_r = 0, stride_d = 0;

  Spread(const std::optional<Tensor>& x, int64_t rows, int64_t depth, ScalarType dtype, const char* argument) {
    if (!x) return;
    STD_TORCH_CHECK(
        x->dim() == 2 && (x->size(0) == rows || x->size(0) == 1) && (x->size(1) == depth || x->size(1) == 1) &&
            x->scalar_type() == dtype,
        "avfast.", op, ": ", argument, ": expected shape [1 or ", rows, ", 1 or ", depth, "] of its type");
    tensor = dense(*x);
    stride_r = x->size(0) == 1 ? 0 : x->size(1);
    stride_d = x->size(1) == 1 ? 0 : 1;
  }
  const void* data() const { return tensor ? tensor->const_data_ptr() : nullptr; }
  FusionMask mask() const { return {static_cast<const bool*>(data()), stride_r, stride_d}; }
  FusionWeight weight() const { return {data(), stride_r, stride_d}; }
};

struct Inputs {
  Tensor a, v;
  FusionArgs args;
  Spread mask_a, mask_v, weight_a, weight_v;

  Inputs(
      const Tensor& a_, const Tensor& v_, const std::optional<Tensor>& mask_a_, const std::optional<Tensor>& mask_v_,
      const std::optional<Tensor>& weight_a_, const std::optional<Tensor>& weight_v_, int64_t mode, bool renormalize)
      : a(dense(a_)), v(dense(v_)), args(check(a_, v_, mode)),
        mask_a(mask_a_, args.rows, args.depth_a, ScalarType::Bool, "mask_a"),
        mask_v(mask_v_, args.rows, mode == FusionArgs::film ? args.depth_a : args.depth_v, ScalarType::Bool, "mask_v"),
        weight_a(weight_a_, args.rows, args.depth_a, accumulation_type(args.dtype), "weight_a"),
        weight_v(weight_v_, args.rows, args.depth_v, accumulation_type(args.dtype), "weight_v") {
    STD_TORCH_CHECK(
        mode != FusionArgs::gated || (weight_a_ && !weight_v_), "avfast.", op, ": gated: expected weight_a and no weight_v");
    STD_TORCH_CHECK(
        mode != FusionArgs::film || (!weight_a_ && !weight_v_), "avfast.", op, ": film: expected no weights");
    args.renormalize = renormalize;
    args.a = a.const_data_ptr(), args.v = v.const_data_ptr();
    args.mask_a = mask_a.mask(), args.mask_v = mask_v.mask();
    args.weight_a = weight_a.weight(), args.weight_v = weight_v.weight();
  }

  static FusionArgs check(const Tensor& a, const Tensor& v, int64_t mode) {
    STD_TORCH_CHECK(a.dim() == 2 && v.dim() == 2 && v.size(0) == a.size(0), "avfast.", op, ": a, v: expected shape [R, D]");
    STD_TORCH_CHECK(mode >= 0 && mode <= 3, "avfast.", op, ": mode: expected 0 to 3, got ", mode);
    const int64_t expected = mode == FusionArgs::film ? 2 * a.size(1) : a.size(1);
    STD_TORCH_CHECK(mode == FusionArgs::concat || v.size(1) == expected, "avfast.", op, ": v: expected ", expected, " channels");
    const DType dtype = dtype_of(a, op, "a");
    STD_TORCH_CHECK(dtype_of(v, op, "v") == dtype, "avfast.", op, ": v: expected the dtype of a");
    return {dtype, FusionArgs::Mode(mode), false, a.size(0), a.size(1), v.size(1), nullptr, nullptr, {}, {}, {}, {}};
  }
};

// Where the gradient of a weight goes, and its sums over blocks of rows if it is repeated along them.
struct WeightGradient {
  Tensor to, partial;
  void *data = nullptr, *blocks = nullptr;

  WeightGradient(const Spread& weight, const FusionArgs& in, const Tensor& like) : to(like), partial(like) {
    const ScalarType wide = accumulation_type(in.dtype);
    to = weight.tensor ? allocate({weight.tensor->size(0), weight.tensor->size(1)}, {weight.tensor->size(1), 1}, wide, like)
                       : allocate_vector(0, wide, like);
    if (!weight.tensor) return;
    const int64_t count = (in.rows + fusion_block - 1) / fusion_block;
    partial = allocate_vector(weight.stride_r ? 0 : count * weight.tensor->size(1), wide, like);
    data = to.mutable_data_ptr();
    blocks = partial.mutable_data_ptr();
  }
};

}  // namespace

Tensor masked_fusion_fwd(
    Tensor a, Tensor v, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v, std::optional<Tensor> weight_a,
    std::optional<Tensor> weight_v, int64_t mode, bool renormalize) {
  const Inputs in(a, v, mask_a, mask_v, weight_a, weight_v, mode, renormalize);
  const int64_t depth = in.args.depth_out();
  Tensor out = allocate({in.args.rows, depth}, {depth, 1}, a.scalar_type(), a);
  kernels().masked_fusion_fwd({in.args, out.mutable_data_ptr()}, torch_threads());
  return out;
}

Tensors4 masked_fusion_bwd(
    Tensor grad, Tensor a, Tensor v, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v, std::optional<Tensor> weight_a,
    std::optional<Tensor> weight_v, int64_t mode, bool renormalize) {
  const Inputs in(a, v, mask_a, mask_v, weight_a, weight_v, mode, renormalize);
  const FusionArgs& args = in.args;
  STD_TORCH_CHECK(
      grad.dim() == 2 && grad.size(0) == args.rows && grad.size(1) == args.depth_out() && dtype_of(grad, op, "grad") == args.dtype,
      "avfast.", op, ": grad: expected shape and type of the output");
  const Tensor g = dense(grad);
  Tensor da = allocate({args.rows, args.depth_a}, {args.depth_a, 1}, a.scalar_type(), a);
  Tensor dv = allocate({args.rows, args.depth_v}, {args.depth_v, 1}, v.scalar_type(), v);
  const WeightGradient wa(in.weight_a, args, a), wv(in.weight_v, args, v);
  kernels().masked_fusion_bwd(
      {args, g.const_data_ptr(), da.mutable_data_ptr(), dv.mutable_data_ptr(), wa.data, wv.data, wa.blocks, wv.blocks},
      torch_threads());
  return {da, dv, wa.to, wv.to};
}

}  // namespace avfast
