// Sums of exponentials over either side of blocks of logits, which are in powers of two throughout.

// sum_k 2^(shift_k) sum_k in double, whatever the shifts.
struct LogSum {
  double top = -std::numeric_limits<double>::infinity(), total = 0;

  void add(double sum, double shift) {
    if (sum == 0) return;
    if (shift > top) {
      total *= std::exp2(top - shift);
      top = shift;
    }
    total += shift == top ? sum : sum * std::exp2(shift - top);
  }
  double log() const { return total == 0 ? -std::numeric_limits<double>::infinity() : std::log(total) + top * natural_log_of_2; }
};

template <typename A>
struct SumsAt {
  double* sum;
  A* shift;
};

// Unnormalised sums of some rows, each with the power of two it is relative to: one for all, or each its own largest logit.
template <typename A>
struct Sums {
  Scratch<double> sum;
  Scratch<A> shift;

  Sums(int64_t n, bool running, double fixed) : sum(n), shift(n) {
    std::fill_n(shift.data, n, A(running ? hole / 2 : fixed));  // a hole is never the largest
  }
  SumsAt<A> at(int64_t i) const { return {sum.data + i, shift.data + i}; }
};

// Sums along the rows of b of one block, a register of partial sums for each of `count` until the block is done.
template <typename A>
struct ColumnLanes {
  const int64_t count;
  alignas(64) A value[block_rows * lanes_of<A>];

  explicit ColumnLanes(int64_t count) : count(count) { std::fill_n(value, count * lanes_of<A>, A(0)); }
  void add(int64_t j, V<A> x) {
    A* at = value + j * lanes_of<A>;
    store<A>(at, load<A>(at) + x);
  }
  void add_to(double* out) const {
    for (int64_t j = 0; j < count; ++j) out[j] += double(sum_lanes<A>(load<A>(value + j * lanes_of<A>)));
  }
};

template <typename A>
inline void add_lanes(double* out, V<A> x) {
  for (int64_t l = 0; l < lanes_of<A>; ++l) out[l] += double(x[l]);
}

// With one shift for all, known beforehand: plain sums, one exponential for both sides.
template <bool COLUMNS, typename A>
inline void add_fixed(const LogitBlock<A>& block, A shift, const SumsAt<A>& rows, const SumsAt<A>& columns) {
  constexpr int NV = gemm_vectors<A>;
  ColumnLanes<A> lanes(COLUMNS ? block.count : 0);
  for (int64_t p = 0; p < block.columns(); p += panel_columns<A>) {
    V<A> sum[NV] = {};
    for (int64_t j = 0; j < block.count; ++j) {
      V<A> column = {};
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const V<A> e = exp2_v<A>(load<A>(block.line(j) + p + v * lanes_of<A>) - splat<A>(shift));
        sum[v] += e;
        column += e;
      }
      if constexpr (COLUMNS) lanes.add(j, column);
    }
    for (int v = 0; v < NV; ++v) add_lanes<A>(rows.sum + p + v * lanes_of<A>, sum[v]);
  }
  lanes.add_to(columns.sum);
}

template <typename A>
inline V<A> larger_of(V<A> a, V<A> b) {
  return select<A>(a > b, a, b);
}

// Relative to the largest logit so far: for logits whose range a fixed shift cannot hold.
template <typename A>
inline void add_running_rows(const LogitBlock<A>& block, const SumsAt<A>& rows) {
  constexpr int NV = gemm_vectors<A>;
  constexpr int64_t lanes = lanes_of<A>;
  for (int64_t p = 0; p < block.columns(); p += panel_columns<A>) {
    V<A> top[NV], sum[NV] = {};
    for (int v = 0; v < NV; ++v) top[v] = load<A>(rows.shift + p + v * lanes);
    for (int64_t j = 0; j < block.count; ++j)
      for (int v = 0; v < NV; ++v) top[v] = larger_of<A>(load<A>(block.line(j) + p + v * lanes), top[v]);
    for (int64_t j = 0; j < block.count; ++j)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[v] += exp2_v<A>(load<A>(block.line(j) + p + v * lanes) - top[v]);
    for (int v = 0; v < NV; ++v) {
      const V<A> shrink = exp2_v<A>(load<A>(rows.shift + p + v * lanes) - top[v]);
      for (int64_t l = 0; l < lanes; ++l) rows.sum[p + v * lanes + l] *= double(shrink[l]);
      add_lanes<A>(rows.sum + p + v * lanes, sum[v]);
      store<A>(rows.shift + p + v * lanes, top[v]);
    }
  }
}

template <typename A>
inline void add_running_columns(const LogitBlock<A>& block, const SumsAt<A>& columns) {
  constexpr int64_t lanes = lanes_of<A>;
  for (int64_t j = 0; j < block.count; ++j) {
    const A* line = block.line(j);
    V<A> top = load<A>(line), sum = {};
    for (int64_t c = lanes; c < block.columns(); c += lanes) top = larger_of<A>(load<A>(line + c), top);
    A highest = columns.shift[j];
    for (int64_t l = 0; l < lanes; ++l) highest = top[l] > highest ? top[l] : highest;
    for (int64_t c = 0; c < block.columns(); c += lanes) sum += exp2_v<A>(load<A>(line + c) - splat<A>(highest));
    if (highest != columns.shift[j]) columns.sum[j] *= std::exp2(double(columns.shift[j]) - double(highest));
    columns.sum[j] += double(sum_lanes<A>(sum));
    columns.shift[j] = highest;
  }
}

// Lanes whose label is `b` and whose logit counts. Labels are as wide as logits.
template <typename A>
inline M<A> equal_labels(const typename Vec<A>::bits* a, typename Vec<A>::bits b, V<A> logit) {
  M<A> labels;
  std::memcpy(&labels, a, sizeof labels);
  return (labels == (M<A>{} + b)) & (logit > splat<A>(A(hole / 2)));
}

// Sums of the logits of equal labels.
template <bool COLUMNS, typename A>
inline void add_equal(
    const LogitBlock<A>& block, const typename Vec<A>::bits* a, const typename Vec<A>::bits* b, double* rows, double* columns) {
  constexpr int NV = gemm_vectors<A>;
  ColumnLanes<A> lanes(COLUMNS ? block.count : 0);
  for (int64_t p = 0; p < block.columns(); p += panel_columns<A>) {
    V<A> sum[NV] = {};
    for (int64_t j = 0; j < block.count; ++j) {
      V<A> column = {};
      for (int v = 0; v < NV; ++v) {
        const V<A> t = load<A>(block.line(j) + p + v * lanes_of<A>);
        const V<A> x = select<A>(equal_labels<A>(a + p + v * lanes_of<A>, b[j], t), t, V<A>{});
        sum[v] += x;
        column += x;
      }
      if constexpr (COLUMNS) lanes.add(j, column);
    }
    for (int v = 0; v < NV; ++v) add_lanes<A>(rows + p + v * lanes_of<A>, sum[v]);
  }
  lanes.add_to(columns);
}

template <bool COLUMNS, typename A>
inline void add_sums(const LogitBlock<A>& block, bool running, const SumsAt<A>& rows, const SumsAt<A>& columns) {
  if (!running) return add_fixed<COLUMNS>(block, *rows.shift, rows, columns);
  add_running_rows(block, rows);
  if constexpr (COLUMNS) add_running_columns(block, columns);
}
