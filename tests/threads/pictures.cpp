#include "cases.h"

namespace avfast::threads {
namespace {

// Planes of `height` rows, some bytes apart.
const BytePlane* planes(Cases& cases, std::vector<BytePlane>& to, int64_t frames, int64_t height, int64_t width) {
  const int64_t stride = width + cases.between(0, 40);
  for (int64_t t = 0; t < frames; ++t) to.push_back({cases.integers<uint8_t>(height * stride, 0, 255), stride});
  return to.data();
}

// element: bytes of a number that bytes become; 1 keeps them
void colours(Cases& cases, int64_t element, bool subsampled) {
  cases.next();
  const int64_t frames = cases.between(2, 4), h = cases.between(161, 240), w = cases.between(601, 900);
  const int64_t ch = subsampled ? (h + 1) / 2 : h, cw = subsampled ? (w + 1) / 2 : w;
  const int64_t out_h = cases.between(31, 300), out_w = cases.between(31, 300);
  std::vector<BytePlane> y, u, v;
  const BytePlane* of_y = planes(cases, y, frames, h, w);
  const BytePlane* of_u = planes(cases, u, frames, ch, cw);
  const BytePlane* of_v = planes(cases, v, frames, ch, cw);
  const void* table = element > 1 ? cases.integers<uint8_t>(3 * 256 * element, 0, 255) : nullptr;
  const YuvToRgbArgs args{
      of_y, of_u, of_v, frames, h, w, ch, cw, cases.between(0, 9999), cases.between(0, 9999), h << 16, w << 16, cases.maybe(), out_h,
      out_w, 16, 9539, 13075, -3209, -6660, 16525, table, element, cases.output(frames * 3 * out_h * out_w * element)};
  AVFAST_CALL(cases, yuv_to_rgb, args);
}

// without strengths: normalised alone
void changes(Cases& cases, DType dtype, bool bytes, bool strengths) {
  cases.next();
  const int64_t n = cases.between(5, 9), h = cases.between(41, 60), w = cases.between(41, 70), size = n * 3 * h * w;
  const void* pictures = bytes ? cases.integers<uint8_t>(size, 0, 255) : cases.numbers(dtype, size);
  const auto doubles = [&](int64_t count) { return static_cast<const double*>(cases.fractions(DType::f64, count)); };
  const double *factors = strengths ? doubles(4 * n) : nullptr, *finish = strengths ? doubles(3 * n) : nullptr;
  const RecolourArgs args{
      pictures, bytes, dtype, n, h, w, factors, cases.integers<int64_t>(4 * n, 0, 3), finish, doubles(3), doubles(3),
      cases.output(dtype, size)};
  AVFAST_CALL(cases, recolour, args);
}

}  // namespace

void pictures(Cases& cases) {
  for (const int64_t element : {1, 2, 4, 8}) colours(cases, element, true), colours(cases, element, false);
  for (const bool strengths : {true, false}) {
    changes(cases, DType::f32, true, strengths);
    for (const DType dtype : all_types) changes(cases, dtype, false, strengths);
  }
}

}  // namespace avfast::threads
