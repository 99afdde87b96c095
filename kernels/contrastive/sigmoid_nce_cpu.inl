// Sigmoid loss: every pair is a question of its own, so loss and both gradients come from one look at a logit.

// softplus(u) = log(1 + e^u); `slope`, if asked for, gets its derivative, the sigmoid.
template <typename A>
inline V<A> softplus_v(V<A> u, V<A>* slope) {
  const M<A> above = u > V<A>{};
  const V<A> small = exp_v<A>(select<A>(above, -u, u));
  if (slope) *slope = select<A>(above, splat<A>(A(1)), small) / (small + splat<A>(A(1)));
  return select<A>(above, u, V<A>{}) + log1p_v<A>(small);
}

// What every row adds up over its entries, as negatives.
struct SigmoidSums {
  double *loss, *slope, *along;  // slope: of sigmoid(u); along: of sigmoid(u) (u - bias)

  SigmoidSums at(int64_t i) const { return {loss + i, slope + i, along + i}; }
};

// With SLOPES also leaves the weight of the products, grad_i sigmoid(u_ij) over the norms, in the place of the logits u.
template <bool SLOPES, typename A>
inline void sigmoid_block(
    const LogitBlock<A>& block, A bias, const A* grad, const A* a_scale, const A* b_scale, const SigmoidSums& sums) {
  constexpr int NV = gemm_vectors<A>;
  constexpr int64_t lanes = lanes_of<A>;
  for (int64_t p = 0; p < block.columns(); p += panel_columns<A>) {
    V<A> loss[NV] = {}, slopes[NV] = {}, along[NV] = {};
    for (int64_t j = 0; j < block.count; ++j) {
      A* line = block.line(j) + p;
      for (int v = 0; v < NV; ++v) {
        const V<A> u = load<A>(line + v * lanes);
        V<A> slope;
        loss[v] += softplus_v<A>(u, SLOPES ? &slope : nullptr);
        if constexpr (SLOPES) {
          slopes[v] += slope;
          along[v] += slope * (u - splat<A>(bias));
          const V<A> row = load<A>(grad + p + v * lanes) * load<A>(a_scale + p + v * lanes);
          store<A>(line + v * lanes, slope * row * splat<A>(b_scale[j]));
        }
      }
    }
    for (int v = 0; v < NV; ++v) {
      add_lanes<A>(sums.loss + p + v * lanes, loss[v]);
      if constexpr (SLOPES) add_lanes<A>(sums.slope + p + v * lanes, slopes[v]), add_lanes<A>(sums.along + p + v * lanes, along[v]);
    }
  }
}

template <typename A>
struct SigmoidNce {
  const SigmoidNceArgs& args;
  const Parallel& parallel;
  const int64_t n = args.a.count, m = args.b.count;
  const Side<A> a{args.a, args.normalize, false, parallel}, b{args.b, args.normalize, false, parallel};
  const int64_t first = std::clamp<int64_t>(-args.positive, 0, n), last = std::clamp<int64_t>(m - args.positive, first, n);
  const Holes holes{{args.positive}, 1};
  Scratch<double> partner{n}, loss{padded_rows(n)}, slope{padded_rows(n)}, along{padded_rows(n)};
  const SigmoidSums sums{loss.data, slope.data, along.data};
  const Factors<A> factors_a{a, args.scale}, factors_b{b, 1};
  Scratch<A> grad{padded_rows(n)};

  SigmoidNce(const SigmoidNceArgs& args, const Parallel& parallel) : args(args), parallel(parallel) {
    partner_similarity(a, b, first, last, args.positive, parallel, partner.data);
    if (args.backward) std::copy_n(static_cast<const A*>(args.grad_row), n, grad.data);
  }

  ProductLogit<A> logit() const { return {factors_a, factors_b, args.bias}; }
  // Logit of the row's positive, whose loss is softplus(-u).
  double positive(int64_t row) const { return partner[row] * args.scale + args.bias; }

  void write_loss() const {
    for (int64_t i = 0; i < n; ++i) {
      double value = loss[i];
      if (i >= first && i < last) {
        const double u = positive(i);
        value += (u < 0 ? -u : 0.0) + std::log1p(std::exp(-std::abs(u)));
      }
      static_cast<A*>(args.loss)[i] = A(value);
    }
  }

  void forward() const {
    const Groups groups{blocks_of(n), groups_of(n)};
    for_tasks(parallel, groups.count, product_work(a, b), [&](int64_t begin, int64_t end) {
      Tiles<A> tiles(a, b);
      for_blocks(groups.begin(begin), groups.begin(end), n, [&](int64_t i, int64_t height) {
        tiles.take(i, height);
        for_blocks(0, blocks_of(m), m, [&](int64_t j, int64_t width) {
          sigmoid_block<false, A>(tiles.against(j, width, logit(), holes), A(0), nullptr, nullptr, nullptr, sums.at(i));
        });
      });
    });
    write_loss();
  }

  void backward() const {
    const int64_t count = std::max(groups_of(n), groups_of(m));
    const Groups groups_a{blocks_of(n), count}, groups_b{blocks_of(m), count};
    const GradientSum<A> da(args.a, args.da), db(args.b, args.db);
    da.clear(parallel), db.clear(parallel);
    const Scratch<double> products(n);  // <row, gradient before the scale>
    for_group_pairs<A>(a, b, count, parallel, [&](Tiles<A>& tiles, int64_t group_a, int64_t group_b) {
      for_blocks(groups_a.begin(group_a), groups_a.end(group_a), n, [&](int64_t i, int64_t height) {
        tiles.take(i, height);
        for_blocks(groups_b.begin(group_b), groups_b.end(group_b), m, [&](int64_t j, int64_t width) {
          const LogitBlock<A>& block = tiles.against(j, width, logit(), holes);
          sigmoid_block<true, A>(block, A(args.bias), grad.data + i, a.inverse.data + i, b.inverse.data + j, sums.at(i));
          tiles.weighed();
          tiles.add_to_a(da.data);
          tiles.add_to_b(db.data);
        });
      });
    });
    write_loss();

    // The positive's weight is -grad sigmoid(-u). Sums are without the scale until they are finished.
    auto weight = [&](int64_t row) { return -double(grad[row]) / (1 + std::exp(positive(row))); };
    auto finish = [&](const GradientSum<A>& sum, const Side<A>& own, const Side<A>& other, const Partners& partners, int64_t to_row,
                      double* with_rows) {
      finish_side(sum, own, other, partners, with_rows, parallel, [&](int64_t i, bool paired) {
        RowTerms<A> t{A(0), A(0), A(0), A(0), A(args.scale)};
        if (paired) t.partner = A(weight(i + to_row) * own.scale(i)), t.scale = A(other.scale(i + partners.offset));
        return t;
      });
    };
    const Partners partners{first, last, args.positive};
    finish(da, a, b, partners, 0, products.data);
    finish(db, b, a, partners.mirrored(), -args.positive, nullptr);

    double dscale = 0, dbias = 0;
    for (int64_t i = 0; i < n; ++i) {
      dscale += args.scale == 0 ? products[i] : double(grad[i]) * along[i] / args.scale;
      dbias += double(grad[i]) * slope[i];
    }
    for (int64_t i = first; i < last; ++i) {
      if (args.scale != 0) dscale += weight(i) * partner[i];
      dbias += weight(i);
    }
    *static_cast<A*>(args.dscale) = A(dscale);
    *static_cast<A*>(args.dbias) = A(dbias);
  }
};

template <typename A>
inline void sigmoid_nce(const SigmoidNceArgs& args, const Parallel& parallel) {
  const SigmoidNce<A> nce(args, parallel);
  if (args.backward) nce.backward();
  else nce.forward();
}

inline void sigmoid_nce_cpu(const SigmoidNceArgs& args, const Parallel& parallel) {
  if (args.a.dtype == DType::f64) sigmoid_nce<double>(args, parallel);
  else sigmoid_nce<float>(args, parallel);
}
