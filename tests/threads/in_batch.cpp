#include <algorithm>

#include "cases.h"

namespace avfast::threads {
namespace {

Rows rows(Cases& cases, DType dtype, int64_t n, int64_t depth, bool transposed = false) {
  return {cases.numbers(dtype, n * depth), dtype, n, depth, transposed ? 1 : depth, transposed ? n : 1};
}

// How often each label of a occurs in b, without the row itself where they are one.
const int32_t* count(Cases& cases, const int32_t* a, int64_t n, const int32_t* b, int64_t m) {
  int32_t* to = cases.integers<int32_t>(n, 0, 0);
  for (int64_t i = 0; i < n; ++i) to[i] = int32_t(std::count(b, b + m, a[i])) - int32_t(a == b);
  return to;
}

struct Way {
  bool labels, l2, normalize, columns, keep;
};

void pair(Cases& cases, DType dtype, const Way& way) {
  cases.next();
  const DType wide = wide_type(dtype);
  const int64_t n = cases.between(261, 333), m = n + cases.between(5, 130), depth = cases.between(17, 40);
  PairNceArgs args{};
  args.a = rows(cases, dtype, n, depth), args.b = rows(cases, dtype, m, depth, cases.maybe());
  args.temperature = way.normalize ? 0.1 : 3.0;
  if (way.labels) {
    args.labels_a = cases.integers<int32_t>(n, 0, 30), args.labels_b = cases.integers<int32_t>(m, 0, 29);
    args.count = count(cases, args.labels_a, n, args.labels_b, m);
  }
  args.positive = way.labels ? 0 : cases.between(0, m - n);
  args.exclude = cases.maybe() ? cases.between(0, 3) : -1;
  args.l2 = way.l2, args.normalize = way.normalize, args.columns = way.columns;
  if (way.keep) {
    const auto blocks = [](int64_t count) { return (count + kept_block - 1) / kept_block; };
    args.logits = cases.output(wide, blocks(m) * blocks(n) * kept_block * kept_block);
    args.lengths = static_cast<double*>(cases.output(DType::f64, 2 * n + m));
  }
  void *row = cases.output(wide, n), *column = way.columns ? cases.output(wide, m) : nullptr;
  const PairNceFwdArgs forward{args, row, column, cases.output(wide, n)};
  AVFAST_CALL(cases, pair_nce_fwd, forward);
  args.known = way.keep;
  const PairNceBwdArgs backward{
      args,
      cases.fractions(wide, n),
      way.columns ? cases.fractions(wide, m) : nullptr,
      row,
      column,
      cases.output(dtype, n * depth),
      cases.output(dtype, m * depth),
      cases.output(wide, 1),
  };
  AVFAST_CALL(cases, pair_nce_bwd, backward);
}

// `half` is of the number of rows: from 450 on each round of the backward pass has work for every thread.
void self(Cases& cases, DType dtype, int64_t half, bool labels, bool normalize) {
  cases.next();
  const DType wide = wide_type(dtype);
  const int64_t n = 2 * half, depth = cases.between(45, 60);
  SelfNceArgs args{rows(cases, dtype, n, depth, cases.maybe()), normalize ? 0.1 : 3.0, nullptr, nullptr, normalize};
  if (labels) {
    args.labels = cases.integers<int32_t>(n, 0, 30);
    args.count = count(cases, args.labels, n, args.labels, n);
  }
  void* lse = cases.output(wide, n);
  const SelfNceFwdArgs forward{args, lse, cases.output(wide, n)};
  AVFAST_CALL(cases, self_nce_fwd, forward);
  const SelfNceBwdArgs backward{
      args, cases.fractions(wide, n), lse, cases.output(dtype, n * depth), cases.output(wide, 1)};
  AVFAST_CALL(cases, self_nce_bwd, backward);
}

void sigmoid(Cases& cases, DType dtype, bool normalize) {
  cases.next();
  const DType wide = wide_type(dtype);
  const int64_t n = cases.between(389, 450), m = n + cases.between(5, 130), depth = cases.between(17, 40);
  SigmoidNceArgs args{
      rows(cases, dtype, n, depth), rows(cases, dtype, m, depth, cases.maybe()), 2.0, -1.0, cases.between(0, m - n), normalize};
  args.loss = cases.output(wide, n);
  AVFAST_CALL(cases, sigmoid_nce, args);
  args.backward = true;
  args.grad_row = cases.fractions(wide, n);
  args.loss = cases.output(wide, n);
  args.da = cases.output(dtype, n * depth), args.db = cases.output(dtype, m * depth);
  args.dscale = cases.output(wide, 1), args.dbias = cases.output(wide, 1);
  AVFAST_CALL(cases, sigmoid_nce, args);
}

}  // namespace

void in_batch(Cases& cases) {
  for (DType dtype : all_types) {
    for (const bool keep : {false, true}) {
      pair(cases, dtype, {false, false, true, true, keep});
      pair(cases, dtype, {false, true, false, cases.maybe(), keep});
      pair(cases, dtype, {true, cases.maybe(), cases.maybe(), false, keep});
    }
    for (const bool normalize : {false, true}) {
      self(cases, dtype, cases.between(261, 290), false, normalize);
      self(cases, dtype, cases.between(261, 290), true, normalize);
      sigmoid(cases, dtype, normalize);
    }
  }
  self(cases, DType::f32, cases.between(450, 470), false, true);
}

}  // namespace avfast::threads
