// Gradients of both sides and of the temperature, from logits that were kept or are computed again.

template <typename A>
void PairNce<A>::backward(const PairNceBwdArgs& out) const {
  const double per_temperature = 1.0 / args.temperature;
  // The weights of the products carry both rows' scales, and 1 / temperature; with l2 that is in the pull.
  SoftmaxSide<A> rows(a, labels_a, out.row_lse, out.grad_row, args.count, 1.0, out.da);
  SoftmaxSide<A> columns(
      b, labels_b, args.columns ? out.col_lse : nullptr, args.columns ? out.grad_col : nullptr, nullptr,
      args.l2 ? 1.0 : per_temperature, out.db);
  const int64_t count = std::max(groups_of(n), groups_of(m));
  const Groups groups_a{blocks_of(n), count}, groups_b{blocks_of(m), count};
  const A pull_factor = A(factor * per_temperature), nearest = A(-minimum_distance * factor);
  auto weigh_block = [&](const LogitBlock<A>& block, const LogitBlock<A>& weights) {
    const WeightSide<A> own = rows.at(block.i), other = columns.at(block.j);
    with_bool(args.l2, [&](auto l2) {
      with_bool(args.columns, [&](auto with_columns) {
        with_bool(labelled, [&](auto with_labels) {
          weigh<l2(), with_columns(), with_labels()>(block, weights, own, other, pull_factor, nearest);
        });
      });
    });
  };

  // Row i and column i + positive pull at each other with what the others pushed.
  auto terms = [&](const SoftmaxSide<A>& own, const SoftmaxSide<A>& other, int64_t at, int64_t offset, int64_t row, bool paired) {
    RowTerms<A> t;
    const double scale = own.side.scale(at);
    if (args.l2) t.own = A(-own.pull[at] * scale * scale), t.difference = A(scale);
    if (!paired) return t;
    const double weight = -(own.lost(at, positive(row)) + other.lost(at + offset, positive(row))) * per_temperature;
    t.scale = A(other.side.scale(at + offset));
    if (!args.l2) t.partner = A(weight * scale);
    else if (partner[row] > minimum_distance) t.partner = A(weight / partner[row] * scale);
    return t;
  };
  const int64_t shift = labelled ? 0 : args.positive;
  const Partners of_rows{first, last, shift}, of_columns = of_rows.mirrored();
  // Calls f with both sides, the partners of the first one's rows, and its terms.
  auto with_sides = [&](bool of_b, auto&& f) {
    const SoftmaxSide<A> &own = of_b ? columns : rows, &other = of_b ? rows : columns;
    const Partners& partners = of_b ? of_columns : of_rows;
    f(own, other, partners, [&](int64_t i, bool paired) { return terms(own, other, i, partners.offset, of_b ? i - shift : i, paired); });
  };

  if (args.logits) {
    const int64_t blocks_a = blocks_of(n);
    const KeptBlocks<A> kept{static_cast<A*>(args.logits), blocks_a, block_rows};
    const Scratch<A> made(blocks_a * blocks_of(m) * block_rows * logit_stride<A>, uncleared);
    const KeptBlocks<A> weights{made.data, blocks_a, logit_stride<A>};
    for (int64_t round = 0; round < count; ++round) {
      for_tasks(parallel, count, n * m / count, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t other = (task + round) % count;
          for_blocks(groups_a.begin(task), groups_a.end(task), n, [&](int64_t i, int64_t height) {
            for_blocks(groups_b.begin(other), groups_b.end(other), m, [&](int64_t j, int64_t width) {
              weigh_block(kept.block(i, height, j, width), weights.block(i, height, j, width));
            });
          });
        }
      });
    }
    const KeptCuts cuts_a(n, 4, 36), cuts_b(m, 4, 36);
    const int64_t tasks_a = out.da ? cuts_a.count() : 0, tasks_b = out.db ? cuts_b.count() : 0;
    const int64_t work = product_work(a, b) * (bool(out.da) + bool(out.db));
    for_tasks(parallel, tasks_a + tasks_b, work, [&](int64_t begin, int64_t end) {
      const Scratch<A> packed(block_rows * panel_columns<A>, uncleared);
      for (int64_t task = begin; task < end; ++task) {
        const bool of_b = task >= tasks_a;
        const KeptCuts& cuts = of_b ? cuts_b : cuts_a;
        const int64_t cut = of_b ? task - tasks_a : task, from = cuts.begin(cut), to = cuts.end(cut);
        with_sides(of_b, [&](const auto& own, const auto& other, const Partners& partners, auto&& own_terms) {
          multiply_kept(weights, of_b, own.gradient, other.side.rows, from, to, packed.data);
          finish_rows(own.gradient, own.side, other.side, partners, from, to, nullptr, own_terms);
        });
      }
    });
  } else {
    rows.gradient.clear(parallel), columns.gradient.clear(parallel);
    with_logit([&](const auto& logit) {
      for_group_pairs<A>(a, b, count, parallel, [&](Tiles<A>& tiles, int64_t group_a, int64_t group_b) {
        for_blocks(groups_a.begin(group_a), groups_a.end(group_a), n, [&](int64_t i, int64_t height) {
          tiles.take(i, height);
          for_blocks(groups_b.begin(group_b), groups_b.end(group_b), m, [&](int64_t j, int64_t width) {
            const LogitBlock<A>& block = tiles.against(j, width, logit, holes);
            weigh_block(block, block);
            tiles.weighed();
            if (out.da) tiles.add_to_a(rows.gradient.data);
            if (out.db) tiles.add_to_b(columns.gradient.data);
          });
        });
      });
    });
    for (const bool of_b : {false, true})
      with_sides(of_b, [&](const auto& own, const auto& other, const Partners& partners, auto&& own_terms) {
        finish_side(own.gradient, own.side, other.side, partners, nullptr, parallel, own_terms);
      });
  }

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
