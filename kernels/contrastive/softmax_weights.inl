// Logits of a block become what the two products of the backward pass are weighted with.
//
// W_ij, the gradient with respect to logit ij, is grad_i p_ij + grad_j p'_ij, p and p' the shares of the entry in its row and its
// column. The single positive of a row is a hole here: its weight, minus the sum of all others, is added with its two rows when
// everything else is done, so nothing cancels. Positives by label are subtracted here.

// What one side brings, and what is added to it: of each row, from the block's first on.
template <typename A>
struct WeightSide {
  const A* lse;    // in powers of two, rounded
  const A* grad;   // times what the rounding took
  const A* scale;  // of the products: 1 / norm, and 1 / temperature on one side
  const A* share;  // grad / number of positives; labels only
  const typename Vec<A>::bits* label;
  double* sum;     // of the row's (column's) shares
  double* along;   // of shares times logits
  double* equal;   // of the positives' logits; labels only
  double* pull;    // of weights over distances; l2 only
};

// Weights are left in `out`, a block of the same rows, which may be the logits' own. L2: the logit is -factor distance, and its weight is W / (temperature distance), 0 where the distance is the least there is, at
// logit `nearest`; `pull_factor` is factor / temperature.
template <bool L2, bool COLUMNS, bool LABELS, typename A>
inline void weigh(
    const LogitBlock<A>& block, const LogitBlock<A>& out, const WeightSide<A>& a, const WeightSide<A>& b, A pull_factor, A nearest) {
  constexpr int NV = gemm_vectors<A>;
  constexpr int64_t lanes = lanes_of<A>;
  ColumnLanes<A> column_sum(COLUMNS ? block.count : 0), column_along(COLUMNS ? block.count : 0);
  ColumnLanes<A> column_equal(COLUMNS && LABELS ? block.count : 0), column_pull(L2 ? block.count : 0);
  for (int64_t p = 0; p < block.columns(); p += panel_columns<A>) {
    V<A> sum[NV] = {}, along[NV] = {}, equal[NV] = {}, pull[NV] = {};
    for (int64_t j = 0; j < block.count; ++j) {
      const A* line = block.line(j) + p;
      A* weights = out.line(j) + p;
      V<A> shares = {}, shares_along = {}, equals = {}, pulls = {};
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const int64_t i = p + v * lanes;
        const V<A> t = load<A>(line + v * lanes), share = exp2_v<A>(t - load<A>(a.lse + i));
        sum[v] += share;
        along[v] += share * t;
        V<A> w = load<A>(a.grad + i) * share;
        if constexpr (COLUMNS) {
          const V<A> column_share = exp2_v<A>(t - splat<A>(b.lse[j]));
          shares += column_share;
          shares_along += column_share * t;
          w += column_share * splat<A>(b.grad[j]);
        }
        if constexpr (LABELS) {
          const M<A> same = equal_labels<A>(a.label + i, b.label[j], t);
          const V<A> logit = select<A>(same, t, V<A>{});
          equal[v] += logit;
          equals += logit;
          V<A> positive = load<A>(a.share + i);
          if constexpr (COLUMNS) positive += splat<A>(b.share[j]);
          w -= select<A>(same, positive, V<A>{});
        }
        if constexpr (L2) {
          w = select<A>(t >= splat<A>(nearest), V<A>{}, w * splat<A>(-pull_factor) / t);  // NaN passes
          pull[v] += w;
          pulls += w;
        }
        store<A>(weights + v * lanes, w * (load<A>(a.scale + i) * splat<A>(b.scale[j])));
      }
      if constexpr (COLUMNS) column_sum.add(j, shares), column_along.add(j, shares_along);
      if constexpr (COLUMNS && LABELS) column_equal.add(j, equals);
      if constexpr (L2) column_pull.add(j, pulls);
    }
    for (int v = 0; v < NV; ++v) {
      add_lanes<A>(a.sum + p + v * lanes, sum[v]);
      add_lanes<A>(a.along + p + v * lanes, along[v]);
      if constexpr (LABELS) add_lanes<A>(a.equal + p + v * lanes, equal[v]);
      if constexpr (L2) add_lanes<A>(a.pull + p + v * lanes, pull[v]);
    }
  }
  column_sum.add_to(b.sum);
  column_along.add_to(b.along);
  column_equal.add_to(b.equal);
  column_pull.add_to(b.pull);
}
