#include "cases.h"

namespace avfast::threads {
namespace {

SmallMaps maps_of(Cases& cases, DType dtype, int64_t batch, int64_t channels) {
  const int64_t h = cases.between(5, 19), w = cases.between(5, 19), size = h * w;
  const bool last = cases.maybe();  // channels are neighbours
  return {cases.numbers(dtype, batch * channels * size), dtype, batch, channels, h, w, channels * size, last ? 1 : size,
          last ? w * channels : w, last ? channels : 1};
}

// Maps so large that each is cut into bands, whose gradients are added up afterwards; or several that are not.
struct Size {
  int64_t batch, height, width;
};
Size size_of(Cases& cases, int64_t channels, bool bands) {
  if (!bands) return {cases.between(5, 9), cases.between(61, 90), cases.between(61, 90)};
  const int64_t width = cases.between(500, 600), rows = (int64_t(1) << 19) / (width * channels);
  return {cases.between(1, 2), 3 * rows + cases.between(25, 90), width};
}

void box(Cases& cases, DType dtype, int64_t channels, bool bands) {
  cases.next();
  const DType wide = wide_type(dtype);
  const Size size = size_of(cases, 1, bands);
  const SmallMaps x = maps_of(cases, dtype, size.batch, channels);
  BoxBceArgs args{};
  args.logits = x;
  args.double_boxes = true;
  args.height = size.height, args.width = size.width;
  if (cases.maybe()) {
    args.mask = cases.integers<uint8_t>(size.batch * size.height * size.width, 0, 1);
  } else {
    double* boxes = static_cast<double*>(cases.numbers(DType::f64, 5 * size.batch));
    for (int64_t i = 0; i < size.batch; ++i) {
      const double values[5] = {double(cases.between(-180, 180)), 3, 5, double(cases.between(20, 50)), double(cases.between(20, 50))};
      std::memcpy(boxes + 5 * i, values, sizeof values);
    }
    args.boxes = boxes;
  }
  args.source_size = 64, args.shrink = 0.8;
  args.align_corners = cases.maybe();
  args.loss = cases.output(wide, size.batch);
  args.grad = cases.output(wide, size.batch * x.height * x.width);
  AVFAST_CALL(cases, box_bce, args);
}

void classes(Cases& cases, DType dtype, int64_t channels, bool weights, bool per_pixel, bool bands) {
  cases.next();
  const DType wide = wide_type(dtype);
  const Size size = size_of(cases, channels, bands);
  const SmallMaps x = maps_of(cases, dtype, size.batch, channels);
  const int64_t pixels = size.batch * size.height * size.width, elements = size.batch * channels * x.height * x.width;
  UpsampleCeArgs args{};
  args.logits = x;
  // One class more than there are: every thread finds it out of range.
  args.target = cases.integers<uint8_t>(pixels, 0, channels);
  args.target_type = IntType::u8;
  args.stride_b = size.height * size.width, args.stride_h = size.width, args.stride_w = 1;
  args.height = size.height, args.width = size.width;
  if (weights) args.weight = cases.fractions(wide, channels);
  args.label_smoothing = weights ? 0.1 : 0.0;
  args.ignore_index = 0;
  args.align_corners = cases.maybe();
  args.out_of_range = static_cast<bool*>(cases.output(1));
  if (per_pixel) {
    args.per_pixel = true;
    args.loss = cases.output(wide, pixels);
    args.total = cases.output(wide, size.batch);
    AVFAST_CALL(cases, upsample_ce, args);
    args.loss = args.total = nullptr;
    args.per_pixel = false;
    args.grad_pixels = cases.fractions(wide, pixels);
  } else {
    args.loss = cases.output(wide, size.batch);
    args.total = cases.output(wide, size.batch);
  }
  cases.changed(args.out_of_range, 1);
  args.grad = cases.output(wide, elements);
  AVFAST_CALL(cases, upsample_ce, args);
}

}  // namespace

void maps(Cases& cases) {
  for (DType dtype : all_types) {
    for (const bool bands : {false, true}) {
      if (bands && dtype != DType::f32) continue;  // much the longest
      box(cases, dtype, 1, bands), box(cases, dtype, 2, bands);
      classes(cases, dtype, 2, false, false, bands), classes(cases, dtype, 2, true, false, bands);
      classes(cases, dtype, cases.between(3, 7), false, true, bands);
    }
  }
}

}  // namespace avfast::threads
