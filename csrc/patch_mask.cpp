#include "../kernels/fusion/patch_mask.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "mask_patches";

struct Draw {
  Tensor keys, counts;
  PatchMaskArgs args;

  Draw(const Tensor& x, const Tensor& keys_, const Tensor& counts_, int64_t patch_h, int64_t patch_w, double value)
      : keys(dense(keys_, "keys", x)), counts(dense(counts_, "counts", x)) {
    STD_TORCH_CHECK(x.dim() == 4, "avfast.", op, ": x: expected shape [N, C, H, W]");
    STD_TORCH_CHECK(patch_h > 0 && patch_w > 0, "avfast.", op, ": patch: expected positive sides");
    args = {nullptr, nullptr, dtype_of(x, op, "x"), x.size(0), x.size(1), x.size(2), x.size(3),
            static_cast<const int64_t*>(keys.const_data_ptr()), static_cast<const int64_t*>(counts.const_data_ptr()),
            patch_h, patch_w, value, nullptr, nullptr};
  }

  static Tensor dense(const Tensor& v, const char* argument, const Tensor& x) {
    STD_TORCH_CHECK(
        v.scalar_type() == ScalarType::Long && v.dim() == 1 && x.dim() > 0 && v.size(0) == x.size(0), "avfast.", op, ": ",
        argument, ": expected int64 of one number for each picture");
    return aligned(v.is_contiguous() ? v : torch::stable::contiguous(v));
  }
};

}  // namespace

Tensor patch_mask_fwd(
    Tensor x, Tensor keys, Tensor counts, int64_t patch_h, int64_t patch_w, double value, std::optional<Tensor> scale,
    std::optional<Tensor> shift) {
  Draw draw(x, keys, counts, patch_h, patch_w, value);
  PatchMaskArgs& args = draw.args;
  const ScalarType wide = accumulation_type(args.dtype);
  const Tensor from = x.is_contiguous() ? x : torch::stable::contiguous(x);
  const int64_t c = args.channels, h = args.height, w = args.width;
  Tensor out = allocate({args.samples, c, h, w}, {c * h * w, h * w, w, 1}, x.scalar_type(), x), by, plus;
  args.x = from.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (scale) by = parameter(*scale, c, false, wide, op, "scale"), args.scale = by.const_data_ptr();
  if (shift) plus = parameter(*shift, c, false, wide, op, "shift"), args.shift = plus.const_data_ptr();
  kernels().patch_mask(args, torch_threads());
  return out;
}

void patch_mask_(Tensor x, Tensor keys, Tensor counts, int64_t patch_h, int64_t patch_w, double value) {
  Draw draw(x, keys, counts, patch_h, patch_w, value);
  STD_TORCH_CHECK(x.is_contiguous() && is_aligned(x), "avfast.", op, ": x: expected a contiguous, aligned tensor to write to");
  draw.args.x = draw.args.out = x.mutable_data_ptr();
  kernels().patch_mask(draw.args, torch_threads());
}

}  // namespace avfast
