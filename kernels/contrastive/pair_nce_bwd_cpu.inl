// Gradients of both sides and of the temperature, from logits that are computed again.

template <typename A>
void PairNce<A>::backward(const PairNceBwdArgs& out) const {
  const double per_temperature = 1.0 / args.temperature;
  // The weights of the products carry both rows' scales, and 1 / temperature; with l2 that is in the pull.
  SoftmaxSide<A> rows(a, labels_a, out.row_lse, out.grad_row, args.count, 1.0, out.da, parallel);
  SoftmaxSide<A> columns(
      b, labels_b, args.columns ? out.col_lse : nullptr, args.columns ? out.grad_col : nullptr, nullptr,
      args.l2 ? 1.0 : per_temperature, out.db, parallel);
  const int64_t count = std::max(groups_of(n), groups_of(m));
  const Groups groups_a{blocks_of(n), count}, groups_b{blocks_of(m), count};
  const A pull_factor = A(factor * per_temperature), nearest = A(-minimum_distance * factor);
  with_bool(args.columns, [&](auto with_columns) {
    with_bool(labelled, [&](auto with_labels) {
      with_logit([&](const auto& logit) {
        constexpr bool L2 = !std::is_same_v<std::decay_t<decltype(logit)>, ProductLogit<A>>;
        for_group_pairs<A>(a, b, count, parallel, [&](Tiles<A>& tiles, int64_t group_a, int64_t group_b) {
          for_blocks(groups_a.begin(group_a), groups_a.end(group_a), n, [&](int64_t i, int64_t height) {
            tiles.take(i, height);
            for_blocks(groups_b.begin(group_b), groups_b.end(group_b), m, [&](int64_t j, int64_t width) {
              const LogitBlock<A>& block = tiles.against(j, width, logit, holes);
              weigh<L2, with_columns(), with_labels()>(block, rows.at(i), columns.at(j), pull_factor, nearest);
              tiles.weighed();
              tiles.add_to_a(rows.gradient.data);
              tiles.add_to_b(columns.gradient.data);
            });
          });
        });
      });
    });
  });

  // Row i and column i + positive pull at each other with what the others pushed.
  auto terms = [&](const SoftmaxSide<A>& own, const SoftmaxSide<A>& other, int64_t at, int64_t offset, int64_t row, bool paired) {
    RowTerms<A> t;
    if (args.l2) t.own = A(-own.pull[at]), t.difference = A(1), t.factor = own.side.inverse[at];
    if (!paired) return t;
    const double weight = -(own.lost(at, positive(row)) + other.lost(at + offset, positive(row))) * per_temperature;
    t.scale = A(other.side.scale(at + offset));
    if (!args.l2) t.partner = A(weight * own.side.scale(at));
    else if (partner[row] > minimum_distance) t.partner = A(weight / partner[row]);
    return t;
  };
  auto finish = [&](const SoftmaxSide<A>& own, const SoftmaxSide<A>& other, int64_t begin, int64_t end, int64_t offset, int64_t to_row) {
    auto alone = [&](int64_t i) { return terms(own, own, i, 0, i, false); };
    finish_rows(own.gradient, own.side, own.side, 0, begin, 0, nullptr, parallel, alone);
    finish_rows(own.gradient, own.side, other.side, begin, end, offset, nullptr, parallel, [&](int64_t i) {
      return terms(own, other, i, offset, i + to_row, true);
    });
    finish_rows(own.gradient, own.side, own.side, end, own.count, 0, nullptr, parallel, alone);
  };
  const int64_t shift = labelled ? 0 : args.positive;
  finish(rows, columns, first, last, shift, 0);
  finish(columns, rows, first + shift, last + shift, -shift, -shift);

  double total = rows.total() + columns.total();  // of weights times logits
  for (int64_t i = first; i < last; ++i) total -= (rows.lost(i, positive(i)) + columns.lost(i + shift, positive(i))) * positive(i);
  *static_cast<A*>(out.dtemperature) = A(-total * natural_log_of_2 * per_temperature);
}

// Calls f(PairNce<A>) for the wide type of the features.
inline void pair_nce_fwd_cpu(const PairNceFwdArgs& args, const Parallel& parallel) {
  if (args.pair.a.dtype == DType::f64) PairNce<double>(args.pair, parallel).forward(args);
  else PairNce<float>(args.pair, parallel).forward(args);
}

inline void pair_nce_bwd_cpu(const PairNceBwdArgs& args, const Parallel& parallel) {
  if (args.pair.a.dtype == DType::f64) PairNce<double>(args.pair, parallel).backward(args);
  else PairNce<float>(args.pair, parallel).backward(args);
}
