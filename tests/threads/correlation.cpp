#include "cases.h"

namespace avfast::threads {
namespace {

void correlate(Cases& cases, DType dtype, CorrelateArgs::Map map) {
  cases.next();
  const DType wide = wide_type(dtype);
  const int64_t b = cases.between(2, 4), e = cases.between(2, 3), nq = cases.between(37, 70), nk = cases.between(21, 49);
  const int64_t h = cases.between(2, 4), d = cases.between(9, 33), rows = b * e * nq;
  const int64_t line = h * d;
  CorrelateArgs args{dtype, b, e, nq, nk, h, d, {}, {}, {}, nullptr, 0.3, map};
  args.q = {cases.numbers(dtype, b * nq * line), nq * line, 0, line, d};
  args.k = {cases.numbers(dtype, b * e * nk * line), e * nk * line, nk * line, line, d};
  args.v = {cases.numbers(dtype, b * e * nk * line), e * nk * line, nk * line, line, d};
  if (cases.maybe()) args.key_mask = reinterpret_cast<const bool*>(cases.integers<uint8_t>(b * e * nk, 0, 1));
  const int64_t heat = map == CorrelateArgs::none ? 0 : map == CorrelateArgs::mean_prob ? rows * nk : rows;
  void* lse = cases.output(wide, rows * h);
  const CorrelateFwdArgs forward{args, cases.output(dtype, rows * line), lse, cases.output(wide, heat)};
  AVFAST_CALL(cases, correlate_fwd, forward);
  const CorrelateBwdArgs backward{
      args,
      cases.numbers(dtype, rows * line),
      cases.numbers(wide, heat),
      lse,
      cases.output(dtype, b * nq * line),
      cases.output(dtype, b * e * nk * line),
      cases.output(dtype, b * e * nk * line),
  };
  AVFAST_CALL(cases, correlate_bwd, backward);
}

void crop(Cases& cases, DType dtype, bool bytes, bool cubic) {
  cases.next();
  const int64_t b = cases.between(2, 4), c = 3, h = cases.between(41, 70), w = cases.between(41, 70);
  const int64_t count = cases.between(3, 5), out = cases.between(9, 40), n = b * c * h * w;
  const void* images = bytes ? cases.integers<uint8_t>(n, 0, 255) : cases.numbers(dtype, n);
  double* boxes = static_cast<double*>(cases.numbers(DType::f64, b * count * 5));
  for (int64_t i = 0; i < b * count; ++i) {
    const double top = double(cases.between(-9, h - 9)), left = double(cases.between(-9, w - 9));
    const double values[5] = {
        double(cases.between(-180, 180)), top, left, top + double(cases.between(3, 40)), left + double(cases.between(3, 40))};
    std::memcpy(boxes + 5 * i, values, sizeof values);
  }
  const bool channels_last = cases.maybe();
  const int64_t size = bytes ? 1 : size_of(dtype);
  const ExemplarCropArgs args{
      images, bytes, bytes ? DType::f32 : dtype, b, c, h, w, c * h * w, channels_last ? 1 : h * w,
      channels_last ? w * c : w, channels_last ? c : 1, boxes, true, count, out, cubic, cases.maybe(),
      cases.output(b * count * c * out * out * size)};
  AVFAST_CALL(cases, exemplar_crop, args);
}

}  // namespace

void correlation(Cases& cases) {
  for (DType dtype : all_types) {
    for (auto map : {CorrelateArgs::none, CorrelateArgs::lse, CorrelateArgs::max, CorrelateArgs::mean_prob}) {
      correlate(cases, dtype, map);
    }
    crop(cases, dtype, false, false), crop(cases, dtype, false, true);
  }
  crop(cases, DType::f32, true, true);
}

}  // namespace avfast::threads
