#include "cases.h"

namespace avfast::threads {
namespace {

// One number for everything, one for each row, one for each channel, or one for each element.
struct Spread {
  int64_t rows, depth, stride_r, stride_d;

  int64_t count() const { return rows * depth; }
};
Spread spread(Cases& cases, int64_t rows, int64_t depth) {
  const bool each_row = cases.maybe(), each_channel = cases.maybe();
  return {each_row ? rows : 1, each_channel ? depth : 1, each_row ? (each_channel ? depth : 1) : 0, each_channel};
}

FusionMask mask(Cases& cases, int64_t rows, int64_t depth) {
  if (cases.maybe()) return {};
  const Spread s = spread(cases, rows, depth);
  return {reinterpret_cast<const bool*>(cases.integers<uint8_t>(s.count(), 0, 1)), s.stride_r, s.stride_d};
}

// A weight, and where its gradient goes.
struct Weight {
  FusionWeight weight{};
  Spread spread{};
  bool given = false;

  Weight(Cases& cases, bool given, DType wide, int64_t rows, int64_t depth) : given(given) {
    if (!given) return;
    spread = threads::spread(cases, rows, depth);
    weight = {cases.fractions(wide, spread.count()), spread.stride_r, spread.stride_d};
  }
  void* gradient(Cases& cases, DType wide) const { return given ? cases.output(wide, spread.count()) : nullptr; }
  void* partial(Cases& cases, DType wide, int64_t rows) const {
    if (!given || spread.stride_r) return nullptr;
    return cases.numbers(wide, (rows + fusion_block - 1) / fusion_block * spread.depth);
  }
};

void fuse(Cases& cases, DType dtype, FusionArgs::Mode mode) {
  cases.next();
  const DType wide = wide_type(dtype);
  const int64_t rows = cases.between(261, 333), d = cases.between(61, 99);
  const int64_t dv = mode == FusionArgs::film ? 2 * d : mode == FusionArgs::concat ? cases.between(33, 70) : d;
  FusionArgs args{dtype, mode, cases.maybe(), rows, d, dv, cases.numbers(dtype, rows * d), cases.numbers(dtype, rows * dv), {}, {}, {}, {}};
  args.mask_a = mask(cases, rows, d), args.mask_v = mask(cases, rows, mode == FusionArgs::film ? d : dv);
  const bool weights = mode != FusionArgs::film;
  const Weight of_a(cases, weights, wide, rows, d), of_v(cases, weights && mode != FusionArgs::gated, wide, rows, dv);
  args.weight_a = of_a.weight, args.weight_v = of_v.weight;
  const int64_t n = rows * args.depth_out();
  AVFAST_CALL(cases, masked_fusion_fwd, FusionFwdArgs{args, cases.output(dtype, n)});
  const FusionBwdArgs backward{
      args,
      cases.numbers(dtype, n),
      cases.output(dtype, rows * d),
      cases.output(dtype, rows * dv),
      of_a.gradient(cases, wide),
      of_v.gradient(cases, wide),
      of_a.partial(cases, wide, rows),
      of_v.partial(cases, wide, rows),
  };
  AVFAST_CALL(cases, masked_fusion_bwd, backward);
}

void linear(Cases& cases, DType dtype, bool masks) {
  cases.next();
  const int64_t rows = cases.between(481, 560), da = cases.between(61, 99), dv = cases.between(40, 70), c = cases.between(61, 99);
  const auto present = [&] { return masks ? reinterpret_cast<const bool*>(cases.integers<uint8_t>(rows, 0, 1)) : nullptr; };
  const ConcatLinearArgs args{
      dtype, rows, da, dv, c, cases.numbers(dtype, rows * da), cases.numbers(dtype, rows * dv),
      cases.numbers(dtype, c * (da + dv)), present(), present()};
  const ConcatLinearFwdArgs forward{args, cases.numbers(dtype, c), cases.output(dtype, rows * c)};
  AVFAST_CALL(cases, concat_linear_fwd, forward);
  const ConcatLinearBwdArgs backward{
      args, cases.numbers(dtype, rows * c), cases.output(dtype, rows * da), cases.output(dtype, rows * dv),
      cases.output(dtype, c * (da + dv)), cases.output(dtype, c)};
  AVFAST_CALL(cases, concat_linear_bwd, backward);
}

void patches(Cases& cases, DType dtype, bool in_place) {
  cases.next();
  const DType wide = wide_type(dtype);
  const int64_t n = cases.between(9, 15), c = 3, side = cases.between(3, 6), h = side * cases.between(9, 14), w = side * cases.between(9, 14);
  const int64_t size = n * c * h * w;
  void* x = cases.numbers(dtype, size);
  PatchMaskArgs args{
      x, nullptr, dtype, n, c, h, w, cases.integers<int64_t>(n, 0, int64_t(1) << 60),
      cases.integers<int64_t>(n, 0, h * w / side / side), side, side, 0.5, nullptr, nullptr};
  if (!in_place) args.scale = cases.numbers(wide, c), args.shift = cases.numbers(wide, c);
  args.out = in_place ? cases.changed(x, size * size_of(dtype)) : cases.output(dtype, size);
  AVFAST_CALL(cases, patch_mask, args);
}

}  // namespace

void fusion(Cases& cases) {
  for (DType dtype : all_types) {
    for (auto mode : {FusionArgs::sum, FusionArgs::gated, FusionArgs::film, FusionArgs::concat}) {
      fuse(cases, dtype, mode), fuse(cases, dtype, mode);  // masks and weights differ
    }
    for (const bool way : {false, true}) linear(cases, dtype, way), patches(cases, dtype, way);
  }
}

}  // namespace avfast::threads
