// Softmax cross-entropy of rows against each other, themselves left out. Logits are symmetric: a block of them serves the rows of
// both its sides, and only blocks on or above the diagonal are computed. On the diagonal the whole square is, for its rows alone.

template <typename A>
struct SelfNce {
  const SelfNceArgs& args;
  const Parallel& parallel;
  const int64_t n = args.z.count, half = n / 2;
  const double factor = log2_of_e / args.temperature;
  const Side<A> z{args.z, args.normalize, false, parallel};
  const Labels<A> labels{args.labels, n};
  const Groups groups{blocks_of(n), groups_of(n)};
  Scratch<double> partner{n};  // similarity with the single positive
  const Factors<A> rows{z, factor}, columns{z, 1};
  Holes holes{{0, half, -half}, args.labels ? 1 : 3};

  SelfNce(const SelfNceArgs& args, const Parallel& parallel) : args(args), parallel(parallel) {
    if (labels.present) return;
    partner_similarity(z, z, 0, half, half, parallel, partner.data);
    std::copy(partner.data, partner.data + half, partner.data + half);
  }

  double positive(int64_t row) const { return partner[row] * factor; }
  ProductLogit<A> logit() const { return {rows, columns, 0}; }

  void forward(const SelfNceFwdArgs& out) const;
  void backward(const SelfNceBwdArgs& out) const;
};

template <typename A>
void SelfNce<A>::forward(const SelfNceFwdArgs& out) const {
  const bool running = !(args.normalize && 2 * std::abs(factor) < 100);
  const int64_t padded = padded_rows(n);
  // What a row gets from the blocks beside it, and what it gets as a column of blocks above it, by their group.
  const Sums<A> own(padded, running, std::abs(factor)), above(groups.count * n, running, std::abs(factor));
  const Scratch<double> equal(labels.present ? padded : 0), equal_above(labels.present ? groups.count * n : 0);
  for_tasks(parallel, groups.count, product_work(z, z) / 2, [&](int64_t begin, int64_t end) {
    Tiles<A> tiles(z, z);
    for (int64_t task = begin; task < end; ++task) {
      // The first group has the most to do and the last the least: taken by turns, any run of tasks is as long as another.
      const int64_t group = task % 2 ? groups.count - 1 - task / 2 : task / 2;
      for_blocks(groups.begin(group), groups.end(group), n, [&](int64_t i, int64_t height) {
        tiles.take(i, height);
        for_blocks(i / block_rows, groups.blocks, n, [&](int64_t j, int64_t width) {
          const LogitBlock<A>& block = tiles.against(j, width, logit(), holes);
          with_bool(i != j, [&](auto mirrored) {
            add_sums<mirrored()>(block, running, own.at(i), above.at(group * n + j));
            if (labels.present)
              add_equal<mirrored()>(
                  block, labels.value.data + i, labels.value.data + j, equal.data + i, equal_above.data + group * n + j);
          });
        });
      });
    }
  });
  A *lse = static_cast<A*>(out.lse), *target = static_cast<A*>(out.target);
  for_tasks(parallel, groups.blocks, n * groups.count, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * block_rows; row < std::min(end * block_rows, n); ++row) {
      LogSum total;
      total.add(own.sum[row], own.shift[row]);
      double value = labels.present ? equal[row] : positive(row);
      for (int64_t g = 0; g < groups.count; ++g) {
        total.add(above.sum[g * n + row], above.shift[g * n + row]);
        if (labels.present) value += equal_above[g * n + row];
      }
      if (labels.present) value /= std::max(args.count[row], 1);
      else total.add(1, positive(row));
      lse[row] = A(total.log());
      target[row] = A(value * natural_log_of_2);
    }
  });
}

template <typename A>
void SelfNce<A>::backward(const SelfNceBwdArgs& out) const {
  const double per_temperature = 1.0 / args.temperature;
  SoftmaxSide<A> side(z, labels, out.lse, out.grad, args.count, 1.0, out.dz);
  side.gradient.clear(parallel);
  Scratch<A> column_scale(padded_rows(n));
  for (int64_t i = 0; i < n; ++i) column_scale[i] = A(z.scale(i) * per_temperature);
  with_bool(labels.present, [&](auto with_labels) {
    for_group_matches<A>(z, groups.count, parallel, [&](Tiles<A>& tiles, int64_t group, int64_t other) {
      Scratch<double> unused(block_rows);
      for_blocks(groups.begin(group), groups.end(group), n, [&](int64_t i, int64_t height) {
        tiles.take(i, height);
        for_blocks(std::max(groups.begin(other), i / block_rows), groups.end(other), n, [&](int64_t j, int64_t width) {
          const LogitBlock<A>& block = tiles.against(j, width, logit(), holes);
          WeightSide<A> columns = side.at(j);
          columns.scale = column_scale.data + j;
          if (i == j) columns.sum = columns.along = columns.equal = unused.data;  // its rows have it all
          weigh<false, true, with_labels()>(block, block, side.at(i), columns, A(0), A(0));
          tiles.weighed();
          tiles.add_to_a(side.gradient.data);
          if (i != j) tiles.add_to_b(side.gradient.data);
        });
      });
    });
  });

  auto lost = [&](int64_t i, int64_t j) { return side.lost(i, positive(i)) + side.lost(j, positive(j)); };
  // The two halves are each other's partners.
  for_row_ranges(parallel, 0, n, args.z.depth, [&](int64_t begin, int64_t end) {
    for (int second = 0; second < 2; ++second) {
      const int64_t from = second ? std::max(begin, half) : begin, to = second ? end : std::min(end, half), offset = second ? -half : half;
      const Partners partners = labels.present ? Partners{n, n, 0} : Partners{0, n, offset};
      if (from >= to) continue;
      finish_rows(side.gradient, z, z, partners, from, to, nullptr, [&](int64_t i, bool paired) {
        RowTerms<A> t;
        if (!paired) return t;
        t.scale = A(z.scale(i + offset));
        t.partner = A(-lost(i, i + offset) * per_temperature * z.scale(i));
        return t;
      });
    }
  });

  double total = side.total();  // of weights times logits
  for (int64_t i = 0; i < half && !labels.present; ++i) total -= lost(i, i + half) * positive(i);
  *static_cast<A*>(out.dtemperature) = A(-total * natural_log_of_2 * per_temperature);
}

inline void self_nce_fwd_cpu(const SelfNceFwdArgs& args, const Parallel& parallel) {
  if (args.self.z.dtype == DType::f64) SelfNce<double>(args.self, parallel).forward(args);
  else SelfNce<float>(args.self, parallel).forward(args);
}

inline void self_nce_bwd_cpu(const SelfNceBwdArgs& args, const Parallel& parallel) {
  if (args.self.z.dtype == DType::f64) SelfNce<double>(args.self, parallel).backward(args);
  else SelfNce<float>(args.self, parallel).backward(args);
}
