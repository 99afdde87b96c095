#include "../kernels/pictures/recolour.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "recolour";

// Numbers [rows, columns], dense; an empty tensor stands for none.
Tensor numbers(const Tensor& given, ScalarType kind, int64_t rows, int64_t columns, const char* argument) {
  STD_TORCH_CHECK(
      given.scalar_type() == kind && !given.is_cuda(), "avfast.", op, ": ", argument, ": expected ",
      kind == ScalarType::Long ? "int64" : "float64", " numbers on the CPU");
  STD_TORCH_CHECK(
      given.dim() == 2 && given.size(0) == rows && given.size(1) == columns, "avfast.", op, ": ", argument, ": expected shape [",
      rows, ", ", columns, "]");
  return given.is_contiguous() ? given : torch::stable::contiguous(given);
}

}  // namespace

Tensor recolour(
    Tensor pictures, std::optional<Tensor> factors, std::optional<Tensor> order, std::optional<Tensor> finish, Tensor affine) {
  STD_TORCH_CHECK(pictures.dim() == 4 && pictures.size(1) == 3, "avfast.", op, ": pictures: expected shape [N, 3, H, W]");
  STD_TORCH_CHECK(
      factors.has_value() == order.has_value(), "avfast.", op, ": order: expected beside factors, and not without them");
  const int64_t n = pictures.size(0), h = pictures.size(2), w = pictures.size(3);
  const bool bytes = pictures.scalar_type() == ScalarType::Byte;
  const DType dtype = bytes ? DType::f32 : dtype_of(pictures, op, "pictures");
  const Tensor last = numbers(affine, ScalarType::Double, 2, 3, "affine");
  const double* scale = static_cast<const double*>(last.const_data_ptr());
  const Tensor dense = pictures.is_contiguous() ? pictures : torch::stable::contiguous(pictures);
  std::optional<Tensor> jitter, places, ending;
  if (factors) jitter = numbers(*factors, ScalarType::Double, n, 4, "factors");
  if (order) places = numbers(*order, ScalarType::Long, n, 4, "order");
  if (finish) ending = numbers(*finish, ScalarType::Double, n, 3, "finish");
  Tensor out = allocate(
      {n, 3, h, w}, {3 * h * w, h * w, w, 1}, bytes ? ScalarType::Float : pictures.scalar_type(), pictures);
  if (n * h * w == 0) return out;
  const RecolourArgs args{
      dense.const_data_ptr(), bytes, dtype, n, h, w,
      jitter ? static_cast<const double*>(jitter->const_data_ptr()) : nullptr,
      places ? static_cast<const int64_t*>(places->const_data_ptr()) : nullptr,
      ending ? static_cast<const double*>(ending->const_data_ptr()) : nullptr, scale, scale + 3, out.mutable_data_ptr()};
  kernels().recolour(args, torch_threads());
  return out;
}

}  // namespace avfast
