#include "../kernels/pictures/yuv_to_rgb.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "yuv_to_rgb";
constexpr int64_t longest = int64_t{1} << 15;

// The planes of one letter, one per frame, in the size of the first; `kept` holds what had to be copied.
std::vector<BytePlane> planes_of(const std::vector<Tensor>& planes, const char* argument, std::vector<Tensor>& kept) {
  std::vector<BytePlane> found;
  for (const Tensor& given : planes) {
    STD_TORCH_CHECK(
        given.dim() == 2 && given.scalar_type() == ScalarType::Byte && !given.is_cuda(), "avfast.", op, ": ", argument,
        ": expected uint8 planes [H, W] on the CPU");
    const int64_t h = given.size(0), w = given.size(1);
    STD_TORCH_CHECK(
        h > 0 && w > 0 && h <= longest && w <= longest, "avfast.", op, ": ", argument, ": expected sides of 1 to 2^15");
    STD_TORCH_CHECK(
        h == planes[0].size(0) && w == planes[0].size(1), "avfast.", op, ": ", argument, ": expected planes of one size");
    const bool rows = w == 1 || given.stride(1) == 1;
    kept.push_back(rows ? given : torch::stable::contiguous(given));
    found.push_back({static_cast<const uint8_t*>(kept.back().const_data_ptr()), kept.back().stride(0)});
  }
  return found;
}

// Whether a side of `chroma` pixels stands for one of `whole`: as many, or half of them rounded up.
bool stands_for(int64_t chroma, int64_t whole) { return chroma == whole || chroma == (whole + 1) / 2; }

}  // namespace

Tensor yuv_to_rgb(
    std::vector<Tensor> y, std::vector<Tensor> u, std::vector<Tensor> v, std::vector<int64_t> box, int64_t height, int64_t width,
    bool centred, std::vector<int64_t> matrix, Tensor table) {
  STD_TORCH_CHECK(
      y.size() == u.size() && y.size() == v.size(), "avfast.", op, ": expected as many planes of u and of v as of y");
  STD_TORCH_CHECK(
      height > 0 && width > 0 && height <= longest && width <= longest, "avfast.", op, ": size: expected sides of 1 to 2^15");
  STD_TORCH_CHECK(
      table.dim() == 2 && (table.numel() == 0 || (table.size(0) == 3 && table.size(1) == 256)), "avfast.", op,
      ": table: expected shape [3, 256] or [3, 0]");
  const bool bytes = table.numel() == 0;
  STD_TORCH_CHECK(
      bytes == (table.scalar_type() == ScalarType::Byte), "avfast.", op, ": table: expected no bytes, or values of another type");
  const int64_t element = bytes ? 1 : size_of(dtype_of(table, op, "table")), frames = int64_t(y.size());
  const Tensor values = bytes || table.is_contiguous() ? table : torch::stable::contiguous(table);
  Tensor rgb = allocate(
      {frames, 3, height, width}, {3 * height * width, height * width, width, 1}, table.scalar_type(), table);
  if (frames == 0) return rgb;

  std::vector<Tensor> kept;
  const auto planes_y = planes_of(y, "y", kept), planes_u = planes_of(u, "u", kept), planes_v = planes_of(v, "v", kept);
  const int64_t h = y[0].size(0), w = y[0].size(1), ch = u[0].size(0), cw = u[0].size(1);
  STD_TORCH_CHECK(
      v[0].size(0) == ch && v[0].size(1) == cw && stands_for(ch, h) && stands_for(cw, w), "avfast.", op,
      ": u, v: expected planes of the sides of y, or of half of them");
  STD_TORCH_CHECK(
      box.size() == 4 && 0 <= box[0] && box[0] < box[2] && box[2] <= h << 16 && 0 <= box[1] && box[1] < box[3] &&
          box[3] <= w << 16,
      "avfast.", op, ": box: expected top, left, bottom and right inside of y");
  STD_TORCH_CHECK(
      matrix.size() == 6 && 0 <= matrix[0] && matrix[0] < 256 && 0 <= matrix[1] && matrix[1] < 1 << 14, "avfast.", op,
      ": matrix: expected black, scale below 2 and four shares of colours");
  for (int64_t share : matrix)
    STD_TORCH_CHECK(-(1 << 15) < share && share < 1 << 15, "avfast.", op, ": matrix: expected shares below 4");
  const YuvToRgbArgs args{
      planes_y.data(), planes_u.data(), planes_v.data(), frames, h, w, ch, cw, box[0], box[1], box[2], box[3], centred, height,
      width, int32_t(matrix[0]), int32_t(matrix[1]), int32_t(matrix[2]), int32_t(matrix[3]), int32_t(matrix[4]),
      int32_t(matrix[5]), bytes ? nullptr : values.const_data_ptr(), element, rgb.mutable_data_ptr()};
  kernels().yuv_to_rgb(args, torch_threads());
  return rgb;
}

}  // namespace avfast
