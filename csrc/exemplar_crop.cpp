#include "../kernels/correlation/exemplar_crop.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "crop_exemplars";

}  // namespace

Tensor exemplar_crop(Tensor images, Tensor boxes, int64_t out, bool cubic, bool antialias) {
  STD_TORCH_CHECK(images.dim() == 4, "avfast.", op, ": images: expected shape [B, C, H, W]");
  const int64_t b = images.size(0), c = images.size(1), h = images.size(2), w = images.size(3);
  STD_TORCH_CHECK(h > 0 && w > 0, "avfast.", op, ": images: expected at least one pixel");
  STD_TORCH_CHECK(h < (int64_t{1} << 24) && w < (int64_t{1} << 24), "avfast.", op, ": images: expected sides below 2^24");
  STD_TORCH_CHECK(
      boxes.dim() == 3 && boxes.size(0) == b && boxes.size(2) == 5, "avfast.", op, ": boxes: expected shape [B, E, 5]");
  const ScalarType kind = boxes.scalar_type();
  STD_TORCH_CHECK(
      kind == ScalarType::Float || kind == ScalarType::Double, "avfast.", op, ": boxes: expected float32 or float64");
  STD_TORCH_CHECK(out > 0, "avfast.", op, ": out: expected a positive number of pixels");
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  const DType dtype = bytes ? DType::f32 : dtype_of(images, op, "images");
  const int64_t e = boxes.size(1);
  const Tensor dense = boxes.is_contiguous() ? boxes : torch::stable::contiguous(boxes);
  Tensor crops = allocate(
      {b, e, c, out, out}, {e * c * out * out, c * out * out, out * out, out, 1}, images.scalar_type(), images);
  if (b * e * c == 0) return crops;
  const ExemplarCropArgs args{
      images.const_data_ptr(), bytes, dtype, b, c, h, w, images.stride(0), images.stride(1), images.stride(2),
      images.stride(3), dense.const_data_ptr(), kind == ScalarType::Double, e, out, cubic, antialias,
      crops.mutable_data_ptr()};
  kernels().exemplar_crop(args, torch_threads());
  return crops;
}

}  // namespace avfast
