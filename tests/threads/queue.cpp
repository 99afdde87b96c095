#include "cases.h"

namespace avfast::threads {
namespace {

// Neighbours are the channels of a position, or the positions of a channel.
FeatureMap map(Cases& cases, DType dtype, int64_t batch, int64_t depth, int64_t positions, bool channels_first) {
  const int64_t size = depth * positions;
  return {cases.numbers(dtype, batch * size), dtype, batch, depth, positions, size, channels_first ? positions : 1,
          channels_first ? 1 : depth};
}

void loss(Cases& cases, DType dtype, DType queue_type, bool dense, bool normalize) {
  cases.next();
  const DType wide = wide_type(dtype);
  const int64_t b = dense ? cases.between(3, 5) : cases.between(150, 250), s = dense ? cases.between(41, 59) : 1;
  const int64_t d = cases.between(17, 40), size = cases.between(401, 500), keys = dense ? cases.between(17, 30) : s;
  const FeatureMap q = map(cases, dtype, b, d, s, dense), k = map(cases, dtype, b, d, keys, dense);
  const bool columns = cases.maybe();
  const Queue queue{cases.numbers(queue_type, size * d), queue_type, size, columns ? 1 : d, columns ? size : 1};
  const int64_t* match = dense ? cases.integers<int64_t>(b * s, -1, keys - 1) : nullptr;
  const double temperature = normalize ? 0.2 : 5.0;
  void* lse = cases.output(wide, b * s);
  const QueueNceFwdArgs forward{
      q,   k, queue, match, temperature, normalize, cases.output(wide, b * s), cases.output(wide, b * s), lse,
      cases.maybe() ? cases.output(wide, b * d * s) : nullptr};
  AVFAST_CALL(cases, queue_nce_fwd, forward);
  const QueueNceBwdQueueArgs backward{
      q, queue, match, cases.fractions(wide, b * s), lse, temperature, normalize, cases.output(queue_type, size * d)};
  AVFAST_CALL(cases, queue_nce_bwd_queue, backward);
}

void match(Cases& cases, DType dtype) {
  cases.next();
  const int64_t b = cases.between(3, 5), d = cases.between(33, 70), s = cases.between(97, 140);
  const FeatureMap q = map(cases, dtype, b, d, s, cases.maybe());
  const FeatureMap k = map(cases, dtype, b, d, cases.between(71, 99), cases.maybe());
  const DenseMatchArgs args{q, k, static_cast<int64_t*>(cases.output(8 * b * s)), cases.output(wide_type(dtype), b * s)};
  AVFAST_CALL(cases, dense_match, args);
}

}  // namespace

void queue(Cases& cases) {
  for (DType dtype : all_types) {
    for (const bool dense : {false, true}) {
      loss(cases, dtype, dtype, dense, true), loss(cases, dtype, dtype, dense, false);
    }
    match(cases, dtype);
  }
  loss(cases, DType::f32, DType::f16, true, true), loss(cases, DType::f16, DType::bf16, false, true);
}

}  // namespace avfast::threads
