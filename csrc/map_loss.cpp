#include "../kernels/correlation/map_loss.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* box_op = "rotated_box_bce";
constexpr const char* class_op = "upsample_cross_entropy";

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

SmallMaps small_maps(const Tensor& x, const char* op) {
  STD_TORCH_CHECK(
      x.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, "avfast.", op,
      ": logits: expected shape [B, C, h, w] of at least one class and position");
  STD_TORCH_CHECK(x.size(2) < INT32_MAX && x.size(3) < INT32_MAX, "avfast.", op, ": logits: expected sides below 2^31");
  return {x.const_data_ptr(), dtype_of(x, op, "logits"), x.size(0), x.size(1), x.size(2), x.size(3),
          x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// Wide, dense [batch, channels, h, w].
Tensor gradient(const SmallMaps& x, int64_t channels, const Tensor& like) {
  const int64_t h = x.height, w = x.width;
  return allocate({x.batch, channels, h, w}, {channels * h * w, h * w, w, 1}, accumulation_type(x.dtype), like);
}

IntType int_type_of(const Tensor& target) {
  switch (target.scalar_type()) {
    case ScalarType::Byte: return IntType::u8;
    case ScalarType::Short: return IntType::i16;
    case ScalarType::Int: return IntType::i32;
    case ScalarType::Long: return IntType::i64;
    default: break;
  }
  STD_TORCH_CHECK(false, "avfast.", class_op, ": target: expected a uint8, int16, int32 or int64 tensor");
}

UpsampleCeArgs class_args(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, bool align_corners, int64_t ignore_index,
    double label_smoothing, bool* out_of_range) {
  const SmallMaps x = small_maps(logits, class_op);
  STD_TORCH_CHECK(
      target.dim() == 3 && target.size(0) == x.batch && target.size(1) > 0 && target.size(2) > 0, "avfast.", class_op,
      ": target: expected shape [B, H, W] of at least one pixel");
  if (weight) {
    STD_TORCH_CHECK(
        weight->dim() == 1 && weight->size(0) == x.channels && weight->scalar_type() == accumulation_type(x.dtype) &&
            weight->is_contiguous(),
        "avfast.", class_op, ": weight: expected a dense vector [C] of the accumulation dtype of logits");
  }
  UpsampleCeArgs args{};
  args.logits = x;
  args.target = target.const_data_ptr();
  args.target_type = int_type_of(target);
  args.stride_b = target.stride(0), args.stride_h = target.stride(1), args.stride_w = target.stride(2);
  args.height = target.size(1), args.width = target.size(2);
  args.weight = weight ? weight->const_data_ptr() : nullptr;
  args.align_corners = align_corners;
  args.ignore_index = ignore_index;
  args.label_smoothing = label_smoothing;
  args.out_of_range = out_of_range;
  return args;
}

void run(const UpsampleCeArgs& args) {
  kernels().upsample_ce(args, torch_threads());
  STD_TORCH_CHECK(
      !*args.out_of_range, "avfast.", class_op, ": target: expected classes 0 to ", args.logits.channels - 1, " or ",
      args.ignore_index, ", got others");
}

}  // namespace

Tensors2 box_bce_fwd(
    Tensor logits, std::optional<Tensor> boxes, std::optional<Tensor> mask, int64_t height, int64_t width, double source_size,
    bool align_corners, double shrink, bool need_grad) {
  const SmallMaps x = small_maps(logits, box_op);
  const int64_t m = x.batch;
  STD_TORCH_CHECK(x.channels <= 2, "avfast.", box_op, ": logits: expected one or two channels");
  STD_TORCH_CHECK(height > 0 && width > 0, "avfast.", box_op, ": size: expected sides of at least one pixel");
  STD_TORCH_CHECK(boxes.has_value() != mask.has_value(), "avfast.", box_op, ": expected either boxes or a mask");
  BoxBceArgs args{};
  args.logits = x;
  Tensor kept = dense(mask ? *mask : *boxes);
  if (mask) {
    STD_TORCH_CHECK(
        kept.dim() == 3 && kept.size(0) == m && kept.size(1) == height && kept.size(2) == width &&
            kept.scalar_type() == ScalarType::Byte,
        "avfast.", box_op, ": mask: expected uint8 [M, H, W]");
    args.mask = static_cast<const uint8_t*>(kept.const_data_ptr());
  } else {
    args.double_boxes = kept.scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(
        kept.dim() == 2 && kept.size(0) == m && kept.size(1) == 5 && (args.double_boxes || kept.scalar_type() == ScalarType::Float),
        "avfast.", box_op, ": boxes: expected float32 or float64 [M, 5]");
    args.boxes = kept.const_data_ptr();
  }
  args.height = height, args.width = width;
  args.source_size = source_size, args.shrink = shrink;
  args.align_corners = align_corners;
  Tensor loss = allocate_vector(m, accumulation_type(x.dtype), logits);
  Tensor grad = need_grad ? gradient(x, 1, logits) : allocate_vector(0, accumulation_type(x.dtype), logits);
  args.loss = loss.mutable_data_ptr();
  args.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  if (m > 0) kernels().box_bce(args, torch_threads());
  return {loss, grad};
}

Tensors3 upsample_ce_fwd(
    Tensor logits, Tensor target, std::optional<Tensor> weight, bool align_corners, int64_t ignore_index,
    double label_smoothing, bool per_pixel, bool need_grad) {
  if (weight) weight = dense(*weight);
  bool out_of_range = false;
  UpsampleCeArgs args = class_args(logits, target, weight, align_corners, ignore_index, label_smoothing, &out_of_range);
  const ScalarType wide = accumulation_type(args.logits.dtype);
  const int64_t b = args.logits.batch, h = args.height, w = args.width;
  Tensor loss = per_pixel ? allocate({b, h, w}, {h * w, w, 1}, wide, logits) : allocate_vector(b, wide, logits);
  Tensor total = allocate_vector(b, wide, logits);
  Tensor grad = need_grad ? gradient(args.logits, args.logits.channels, logits) : allocate_vector(0, wide, logits);
  args.loss = loss.mutable_data_ptr();
  args.per_pixel = per_pixel;
  args.total = total.mutable_data_ptr();
  args.grad = need_grad ? grad.mutable_data_ptr() : nullptr;
  if (b > 0) run(args);
  return {loss, total, grad};
}

Tensor upsample_ce_bwd(
    Tensor grad_pixels, Tensor logits, Tensor target, std::optional<Tensor> weight, bool align_corners, int64_t ignore_index,
    double label_smoothing) {
  if (weight) weight = dense(*weight);
  bool out_of_range = false;
  UpsampleCeArgs args = class_args(logits, target, weight, align_corners, ignore_index, label_smoothing, &out_of_range);
  const Tensor by = dense(grad_pixels);
  STD_TORCH_CHECK(
      by.dim() == 3 && by.size(0) == args.logits.batch && by.size(1) == args.height && by.size(2) == args.width &&
          by.scalar_type() == accumulation_type(args.logits.dtype),
      "avfast.", class_op, ": grad_pixels: expected [B, H, W] of the accumulation dtype of logits");
  Tensor grad = gradient(args.logits, args.logits.channels, logits);
  args.grad_pixels = by.const_data_ptr();
  args.grad = grad.mutable_data_ptr();
  if (args.logits.batch > 0) run(args);
  return grad;
}

}  // namespace avfast
