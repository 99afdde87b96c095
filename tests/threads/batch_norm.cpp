#include "cases.h"

namespace avfast::threads {
namespace {

// Few long channels are cut into parts, many short ones are not; both orders in memory.
std::vector<Activation> activations(Cases& cases, DType dtype) {
  std::vector<Activation> found;
  for (auto order : {Activation::rows, Activation::lanes}) {
    found.push_back({cases.between(5, 9), cases.between(19, 45), cases.between(150, 333), order, dtype});
    found.push_back({cases.between(2, 5), cases.between(1, 2), cases.between(17001, 20000), order, dtype});
  }
  found.push_back({cases.between(1501, 2000), cases.between(17, 40), 1, Activation::lanes, dtype});
  return found;
}

void scan(Cases& cases) {
  cases.next();
  constexpr int64_t count = 9, widest = 1 << 14;  // together more than a scan on one thread takes
  std::vector<BnLayer> layers;
  int64_t channels = 0;
  for (int64_t l = 0; l < count; ++l) {
    const int64_t n = l == 4 ? cases.between(1, 99) : widest + cases.between(1, 333);
    const DType affine = all_types[l % 4], stats = all_types[l / 3 % 4];
    const auto vector = [&](DType dtype) { return cases.maybe() || l == 0 ? cases.numbers(dtype, n) : nullptr; };
    layers.push_back({vector(affine), vector(affine), vector(stats), vector(stats), n, channels, affine, stats});
    channels += n;
  }
  const BnScanArgs args{
      layers.data(),
      count,
      widest + 333,
      0.1f,
      static_cast<uint8_t*>(cases.output(channels)),
      static_cast<float*>(cases.output(DType::f32, channels)),
      static_cast<float*>(cases.output(DType::f32, channels)),
      static_cast<int32_t*>(cases.output(4 * count * bn_counts)),
  };
  AVFAST_CALL(cases, bn_scan, args);
}

void statistics(Cases& cases, const Activation& x) {
  cases.next();
  const int64_t c = x.channels;
  const auto numbers = [&] { return static_cast<double*>(cases.output(DType::f64, c)); };
  const auto counts = [&] { return static_cast<int64_t*>(cases.output(8 * c)); };
  const ChannelStatsArgs args{x, cases.numbers(x.dtype, x.numel()), 0.05, numbers(), numbers(), counts(), counts()};
  AVFAST_CALL(cases, channel_stats, args);
}

void blended(Cases& cases, const Activation& x, bool relu) {
  cases.next();
  const int64_t c = x.channels;
  const DType wide = wide_type(x.dtype);
  const bool each = cases.maybe();
  const BlendedBnParams params{
      cases.numbers(wide, c), cases.numbers(wide, c), cases.numbers(wide, c),
      cases.numbers(wide, c), cases.fractions(wide, each ? c : 1), each};
  const void* data = cases.numbers(x.dtype, x.numel());
  void *mean = cases.output(wide, c), *var = cases.output(wide, c);
  const BlendedBnFwdArgs forward{x, params, 1e-5, relu, data, cases.output(x.dtype, x.numel()), mean, var};
  AVFAST_CALL(cases, blended_bn_fwd, forward);
  void* small[5];
  for (void*& to : small) to = cases.output(wide, c);
  const BlendedBnBwdArgs backward{
      x,    params,   1e-5,     relu,     cases.numbers(x.dtype, x.numel()), data, mean, var, cases.output(x.dtype, x.numel()),
      small[0], small[1], small[2], small[3], small[4]};
  AVFAST_CALL(cases, blended_bn_bwd, backward);
}

void affine(Cases& cases, const Activation& x, bool relu) {
  cases.next();
  const int64_t c = x.channels, n = x.numel();
  const DType wide = wide_type(x.dtype);
  const void *data = cases.numbers(x.dtype, n), *scale = cases.numbers(wide, c), *shift = cases.numbers(wide, c);
  const ChannelAffineFwdArgs forward{x, relu, data, scale, shift, cases.output(x.dtype, n)};
  AVFAST_CALL(cases, channel_affine_fwd, forward);
  const ChannelAffineBwdArgs backward{
      x, relu, cases.numbers(x.dtype, n), data, scale, shift, cases.output(x.dtype, n), cases.output(wide, c), cases.output(wide, c)};
  AVFAST_CALL(cases, channel_affine_bwd, backward);
}

}  // namespace

void batch_norm(Cases& cases) {
  scan(cases);
  for (DType dtype : all_types) {
    for (const Activation& x : activations(cases, dtype)) {
      const bool relu = cases.maybe();
      statistics(cases, x), blended(cases, x, relu), affine(cases, x, relu);
    }
  }
}

}  // namespace avfast::threads
