// Softmax cross-entropy of the rows of a against the rows of b, and with `columns` of b against a from the same products.

// Calls f(std::true_type) or f(std::false_type).
template <typename F>
inline void with_bool(bool flag, F&& f) {
  if (flag) f(std::true_type{});
  else f(std::false_type{});
}

template <typename A>
struct PairNce {
  const PairNceArgs& args;
  const Parallel& parallel;
  const int64_t n = args.a.count, m = args.b.count;
  const double factor = log2_of_e / args.temperature;  // similarity to powers of two
  const Side<A> a{args.a, args.normalize, args.l2}, b{args.b, args.normalize, args.l2};
  const Labels<A> labels_a{args.labels_a, n}, labels_b{args.labels_b, m};
  const bool labelled = args.labels_a != nullptr;
  // Rows that have one positive, column row + positive, and its similarity (distance).
  const int64_t first = labelled ? 0 : std::clamp<int64_t>(-args.positive, 0, n);
  const int64_t last = labelled ? 0 : std::clamp<int64_t>(m - args.positive, first, n);
  Scratch<double> partner{n};
  Holes holes{};

  PairNce(const PairNceArgs& args, const Parallel& parallel) : args(args), parallel(parallel) {
    if (!labelled) holes.offset[holes.count++] = args.positive;
    if (args.exclude >= 0) holes.offset[holes.count++] = args.exclude;
    if (args.known) {
      for (int64_t i = 0; i < n; ++i) a.set_length(i, args.lengths[i]);
      for (int64_t j = 0; j < m; ++j) b.set_length(j, args.lengths[n + j]);
      std::copy_n(args.lengths + n + m, n, partner.data);
      return;
    }
    measure_pairs(a, b, first, last, labelled ? 0 : args.positive, parallel, partner.data);
    if (!args.lengths) return;
    std::copy_n(a.norm.data, n, args.lengths);
    std::copy_n(b.norm.data, m, args.lengths + n);
    std::copy_n(partner.data, n, args.lengths + n + m);
  }

  bool has_positive(int64_t row) const { return row >= first && row < last; }
  double positive(int64_t row) const { return (args.l2 ? -partner[row] : partner[row]) * factor; }

  template <typename F>
  void with_logit(F&& f) const {
    const Factors<A> factors_a(a, args.l2 ? -2.0 : factor), factors_b(b, 1);
    const ProductLogit<A> product(factors_a, factors_b, 0);
    if (args.l2) f(DistanceLogit<A>{product, a.square.data, b.square.data, A(factor)});
    else f(product);
  }

  void forward(const PairNceFwdArgs& out) const;
  void backward(const PairNceBwdArgs& out) const;
};

template <typename A>
void PairNce<A>::forward(const PairNceFwdArgs& out) const {
  // Unit rows: logits span 2 / temperature, and where a float's exponent holds that the largest possible one is the shift.
  const bool running = !(args.normalize && 2 * std::abs(factor) < 100);
  const double shift = args.l2 ? 0.0 : std::abs(factor);
  const KeptBlocks<A> kept{static_cast<A*>(args.logits), blocks_of(n), block_rows};
  const KeptCuts cuts(m, 8, 12);
  const Groups groups{blocks_of(n), kept.data ? blocks_of(n) : groups_of(n)};
  const int64_t blocks = blocks_of(m), padded = padded_rows(n);
  const int64_t segments = kept.data ? cuts.count() : std::clamp<int64_t>(16 / groups.count, 1, std::max<int64_t>(blocks / 8, 1));
  const Sums<A> rows(segments * padded, running, shift), columns(args.columns ? groups.count * m : 0, running, shift);
  const Scratch<double> equal(labelled ? segments * padded : 0);
  auto add = [&](const LogitBlock<A>& block, int64_t group, int64_t segment) {
    const int64_t row = segment * padded + block.i;
    if (args.columns) add_sums<true>(block, running, rows.at(row), columns.at(group * m + block.j));
    else add_sums<false>(block, running, rows.at(row), {});
    if (labelled)
      add_equal<false>(block, labels_a.value.data + block.i, labels_b.value.data + block.j, equal.data + row, nullptr);
  };
  with_logit([&](const auto& logit) {
    if (kept.data) {
      const TransposedRows<A> transposed(args.a, parallel);
      for_tasks(parallel, groups.blocks * segments, product_work(a, b), [&](int64_t begin, int64_t end) {
        const RowReader<A> reader(args.b);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t group = task / segments, segment = task % segments, i = group * block_rows, j = cuts.begin(segment);
          const LogitBlock<A> block = kept.block(i, std::min(block_rows, n - i), j, cuts.end(segment) - j);
          make_kept(block, transposed, reader.read(j, block.count), args.a.depth, logit);
          block.leave_out(holes);
          kept.fill_rest(block, segment + 1 == segments);
          add(block, group, segment);
        }
      });
      return;
    }
    for_tasks(parallel, groups.count * segments, product_work(a, b), [&](int64_t begin, int64_t end) {
      Tiles<A> tiles(a, b);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / segments, segment = task % segments;
        for_blocks(groups.begin(group), groups.end(group), n, [&](int64_t i, int64_t count) {
          tiles.take(i, count);
          for_blocks(blocks * segment / segments, blocks * (segment + 1) / segments, m, [&](int64_t j, int64_t width) {
            add(tiles.against(j, width, logit, holes), group, segment);
          });
        });
      }
    });
  });
  A *row_lse = static_cast<A*>(out.row_lse), *col_lse = static_cast<A*>(out.col_lse), *target = static_cast<A*>(out.target);
  for_tasks(parallel, blocks_of(n), n * segments, [&](int64_t begin, int64_t end) {
    for_blocks(begin, end, n, [&](int64_t i, int64_t count) {
      for (int64_t row = i; row < i + count; ++row) {
        LogSum total;
        double equal_sum = 0;
        for (int64_t s = 0; s < segments; ++s) {
          total.add(rows.sum[s * padded + row], rows.shift[s * padded + row]);
          if (labelled) equal_sum += equal[s * padded + row];
        }
        if (has_positive(row)) total.add(1, positive(row));
        row_lse[row] = A(total.log());
        const double value = labelled ? equal_sum / std::max(args.count[row], 1) : has_positive(row) ? positive(row) : 0.0;
        target[row] = A(value * natural_log_of_2);
      }
    });
  });
  if (!args.columns) return;
  for_tasks(parallel, blocks, m * groups.count, [&](int64_t begin, int64_t end) {
    for_blocks(begin, end, m, [&](int64_t j, int64_t count) {
      for (int64_t column = j; column < j + count; ++column) {
        LogSum total;
        for (int64_t g = 0; g < groups.count; ++g) total.add(columns.sum[g * m + column], columns.shift[g * m + column]);
        if (!labelled && has_positive(column - args.positive)) total.add(1, positive(column - args.positive));
        col_lse[column] = A(total.log());
      }
    });
  });
}

