// Cross-attention forward. Vectors run over queries, so a softmax over keys is vertical; scores of a panel of queries stay in the
// first-level cache, and outputs leave in their own order, so only queries are transposed, once for all exemplars.

template <typename T>
struct CorrelateForward {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>, panel = correlate_panel<A>;
  static constexpr A infinity = std::numeric_limits<A>::infinity();

  const CorrelateFwdArgs& args;
  const CorrelateArgs& in = args.in;
  const int64_t first, heads;  // heads [first, first + heads)
  Keys<T> keys{in, in.k, first, heads}, values{in, in.v, first, heads};
  Scratch<A> queries{heads * in.depth * panel, uncleared}, scores{in.keys * panel, uncleared};
  const bool whole = std::is_same_v<T, A> && in.depth % lanes == 0;  // products are outputs
  Scratch<A> attended{whole ? 0 : panel * values.width, uncleared};
  // Sums over heads: of a map with a number for each row, and of one with its probabilities.
  Scratch<A> rows{panel}, probabilities{in.map == CorrelateArgs::mean_prob ? in.keys * panel : 0};
  Scratch<int64_t> index{in.keys};

  // scores[count][columns], in units of log(2), become probabilities.
  void softmax(int64_t count, int64_t columns, int64_t live, A* lse) {
    for (int64_t p = 0; p < columns; p += lanes) {
      A* s = scores.data + p;
      V<A> top = load<A>(s), sum{};
      for (int64_t j = 1; j < count; ++j) top = greater_of<A>(top, load<A>(s + j * columns));
      for (int64_t j = 0; j < count; ++j) {
        const V<A> x = exp2_v<A>(load<A>(s + j * columns) - top);
        sum += x;
        store<A>(s + j * columns, x);
      }
      const V<A> one_over = splat<A>(A(1)) / sum, log_sum = top * splat<A>(A(natural_log_of_2)) + log_above_one<A>(sum);
      for (int64_t j = 0; j < count; ++j) store<A>(s + j * columns, load<A>(s + j * columns) * one_over);
      if (p < live) store_up_to(lse + p, log_sum, live - p);
      if (in.map == CorrelateArgs::lse) add(rows.data + p, log_sum);
      if (in.map == CorrelateArgs::max) add(rows.data + p, top * splat<A>(A(natural_log_of_2)) + (sum - sum));
      if (in.map == CorrelateArgs::mean_prob)
        for (int64_t j = 0; j < count; ++j) add(probabilities.data + j * panel + p, load<A>(s + j * columns));
    }
  }

  static void add(A* to, V<A> x) { store<A>(to, load<A>(to) + x); }

  // Queries [query, query + live) of sample b against all exemplars.
  void run(int64_t b, int64_t query) {
    const int64_t live = std::min(panel, in.queries - query), columns = whole_vectors(live, lanes);
    const T* q = static_cast<const T*>(in.q.data) + b * in.q.stride_b + query * in.q.stride_n;
    for (int64_t h = 0; h < heads; ++h)
      pack_scaled(
          q + (first + h) * in.q.stride_h, in.depth, live, columns, in.q.stride_n, A(in.scale * log2_of_e),
          queries.data + h * in.depth * panel);
    for (int64_t e = 0; e < in.exemplars; ++e) exemplar(b, e, query, live, columns);
  }

  void exemplar(int64_t b, int64_t e, int64_t query, int64_t live, int64_t columns) {
    const int64_t sample = b * in.exemplars + e, count = allowed_keys(in, b, e, index.data), wide = in.heads * in.depth;
    T* out = static_cast<T*>(args.out) + (sample * in.queries + query) * wide + first * in.depth;
    A* lse = static_cast<A*>(args.lse) + (sample * in.heads + first) * in.queries + query;
    if (!count) {
      for (int64_t i = 0; i < live; ++i) std::memset(static_cast<void*>(out + i * wide), 0, size_t(heads * in.depth) * sizeof(T));
      for (int64_t h = 0; h < heads; ++h) std::fill_n(lse + h * in.queries, live, -infinity);
    } else {
      keys.take(b, e, index.data, count);
      values.take(b, e, index.data, count);
      std::fill_n(rows.data, panel, A(0));
      if (in.map == CorrelateArgs::mean_prob) std::fill_n(probabilities.data, count * panel, A(0));
      for (int64_t h = 0; h < heads; ++h, out += in.depth, lse += in.queries) {
        fetch(out, live, wide);
        multiply<A>(
            count, columns / lanes, in.depth, keys.data + h * keys.head, keys.row, 1, queries.data + h * in.depth * panel,
            columns, scores.data, columns, false);
        softmax(count, columns, live, lse);
        attend(count, columns, live, values.data + h * values.head, out, wide);
      }
    }
    write_map(sample, query, live, count);
  }

  // A head's outputs are short pieces of rows far apart, which no prefetcher guesses: their lines are asked for before the scores.
  void fetch(const T* out, int64_t live, int64_t wide) const {
    for (int64_t i = 0; i < live; ++i)
      for (int64_t c = 0; c < in.depth; c += int64_t(64 / sizeof(T))) __builtin_prefetch(out + i * wide + c, 1, 1);
  }

  // out[live][depth] = probabilities^T values
  void attend(int64_t count, int64_t columns, int64_t live, const A* value, T* out, int64_t wide) {
    const int64_t vectors = values.width / lanes;
    if constexpr (std::is_same_v<T, A>) {
      if (whole) return multiply<A>(live, vectors, count, scores.data, 1, columns, value, values.row, out, wide, false);
    }
    multiply<A>(live, vectors, count, scores.data, 1, columns, value, values.row, attended.data, values.width, false);
    for (int64_t i = 0; i < live; ++i)
      for (int64_t c = 0; c < in.depth; c += lanes)
        store_up_to(out + i * wide + c, load<A>(attended.data + i * values.width + c), in.depth - c);
  }

  void write_map(int64_t sample, int64_t query, int64_t live, int64_t count) {
    A* map = static_cast<A*>(args.map);
    const A share = A(1) / A(in.heads);
    if (in.map == CorrelateArgs::mean_prob) {
      map += (sample * in.queries + query) * in.keys;
      std::fill_n(map, live * in.keys, A(0));
      for (int64_t j = 0; j < count; ++j)
        for (int64_t i = 0; i < live; ++i) map[i * in.keys + index[j]] = probabilities[j * panel + i] * share;
    } else if (in.map != CorrelateArgs::none) {
      map += sample * in.queries + query;
      for (int64_t i = 0; i < live; ++i) map[i] = count ? rows[i] * share : -infinity;
    }
  }
};

inline void correlate_fwd_cpu(const CorrelateFwdArgs& args, const Parallel& parallel) {
  with_type(args.in.dtype, [&](auto type) {
    using Forward = CorrelateForward<decltype(type)>;
    const CorrelateArgs& in = args.in;
    const int64_t panels = (in.queries + Forward::panel - 1) / Forward::panel, blocks = in.batch * panels;
    if (!blocks) return;
    // Maps are sums over heads, so one task has them all; without one, small batches are cut by heads as well.
    const int64_t cuts = in.map ? 1 : std::min(in.heads, (32 + blocks - 1) / blocks);
    const int64_t heads = (in.heads + cuts - 1) / cuts, groups = (in.heads + heads - 1) / heads;
    const int64_t work = in.batch * in.exemplars * in.queries * in.heads * (in.keys + 1) * in.depth / 16;
    for_tasks(parallel, blocks * groups, work, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t block = t / groups, first = t % groups * heads;
        Forward forward{args, args.in, first, std::min(heads, in.heads - first)};
        forward.run(block / panels, block % panels * Forward::panel);
      }
    });
  });
}
