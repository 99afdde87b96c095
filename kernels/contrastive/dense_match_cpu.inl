// The key position most similar to each query position of the same image, and how similar it is.
//
// The length of a query scales all its scores alike, so only keys are normalised, and only after the product: their lengths are
// summed in the same read. Channels are streamed in slices that stay in the first-level cache; those of bfloat16 maps in pairs, where the
// processor multiplies pairs.

// U: what is multiplied, a wide element or a pair of neighbouring channels.
template <typename T, typename U>
struct DenseMatch {
  using A = Acc<T>;
  using Index = typename Vec<A>::bits;
  static constexpr int64_t lanes = lanes_of<A>, columns = panel_columns<A>;  // queries of one panel
  static constexpr int NV = gemm_vectors<A>;
  static constexpr int64_t slice = 64, block = 126;  // channels and keys at a time

  const DenseMatchArgs& args;
  const int64_t depth = args.q.depth;
  Scratch<U> queries{units<U>(slice) * columns}, keys{units<U>(slice) * whole(block)};
  Scratch<A> scores{block * columns}, query_length{columns}, key_length{whole(block)};  // squares until all is read
  Scratch<A> best{columns};
  Scratch<Index> place{columns};

  static int64_t whole(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

  // Channels [c, c + n) of `live` positions from `first` on, as out[units of n][width]; squares[width] grow by theirs.
  static void read(
      const FeatureMap& x, int64_t b, int64_t first, int64_t live, int64_t width, int64_t c, int64_t n, U* out, A* squares) {
    const T* from = static_cast<const T*>(x.data) + b * x.stride_b + c * x.stride_d + first * x.stride_s;
    if constexpr (std::is_same_v<U, A>) pack(from, n, live, width, x.stride_d, x.stride_s, out);
    else pack_pairs(from, n, live, width, x.stride_d, x.stride_s, out);
    if (x.stride_s == 1) {
      // Ask for the next slice while this one is multiplied, not nearer than the second cache: the first is full.
      for (int64_t d = slice; d < std::min(2 * slice, x.depth - c); ++d)
        for (int64_t p = 0; p < live; p += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + d * x.stride_d + p, 0, 2);
    }
    for (int64_t p = 0; p < width; p += lanes) {
      V<A> sum[4] = {load<A>(squares + p)};
      for (int64_t u = 0; u < units<U>(n); u += 4)
        for (int64_t i = 0; i < std::min<int64_t>(4, units<U>(n) - u); ++i) add_squares(out + (u + i) * width + p, sum[i]);
      store<A>(squares + p, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
  }

  static void pack_pairs(const T* x, int64_t n, int64_t live, int64_t width, int64_t stride_d, int64_t stride_s, U* out) {
    for (int64_t u = 0; u < units<U>(n); ++u, x += 2 * stride_d, out += width) {
      pair_up(x, 2 * u + 1 < n ? x + stride_d : nullptr, stride_s, live, out);
      std::fill(out + live, out + width, U{});
    }
  }

  static void add_squares(const U* x, V<A>& sum) {
    if constexpr (std::is_same_v<U, A>) {
      const V<A> v = load<A>(x);
      sum += v * v;
    } else {
      sum = multiply_pairs(sum, x);
    }
  }

  static void lengths(A* squares, int64_t n) {
    for (int64_t i = 0; i < n; ++i) squares[i] = std::max(A(std::sqrt(squares[i])), A(1e-12));
  }

  // scores[count][columns] of keys from `key` on against `live` queries from `query` on.
  void multiply(int64_t b, int64_t query, int64_t live, int64_t key, int64_t count) {
    const int64_t width = whole(count);
    std::fill_n(scores.data, count * columns, A(0));
    std::fill_n(query_length.data, columns, A(0));
    std::fill_n(key_length.data, width, A(0));
    for (int64_t c = 0; c < depth; c += slice) {
      const int64_t n = std::min(slice, depth - c);
      read(args.q, b, query, live, columns, c, n, queries.data, query_length.data);
      read(args.k, b, key, count, width, c, n, keys.data, key_length.data);
      for (int64_t j = 0; j < count; j += gemm_rows<A>) {
        with_rows<gemm_rows<A>>(count - j, [&](auto rows) {
          V<A> tile[rows()][NV] = {};
          gemm_tile<U, rows(), NV>(units<U>(n), keys.data + j, 1, width, queries.data, columns, tile);
          A* line = scores.data + j * columns;
          for_tile(tile, [&](int r, int v, const V<A>& x) {
            A* at = line + r * columns + v * lanes;
            store<A>(at, load<A>(at) + x);
          });
        });
      }
    }
    lengths(query_length.data, live);
    lengths(key_length.data, count);
  }

  // Takes over what beats the best so far: something larger, or the first NaN.
  void choose(int64_t key, int64_t count) {
    for (int64_t p = 0; p < columns; p += lanes) {
      V<A> top = load<A>(best.data + p);
      M<A> at;
      std::memcpy(&at, place.data + p, sizeof at);
      for (int64_t j = 0; j < count; ++j) {
        const V<A> s = load<A>(scores.data + j * columns + p) / splat<A>(key_length[j]);
        const M<A> better = (s > top) | ((s != s) & (top == top));
        top = select<A>(better, s, top);
        at = better ? M<A>{} + Index(key + j) : at;
      }
      store<A>(best.data + p, top);
      std::memcpy(place.data + p, &at, sizeof at);
    }
  }

  void panel(int64_t b, int64_t query) {
    const int64_t live = std::min(columns, args.q.positions - query), row = b * args.q.positions + query;
    std::fill_n(best.data, columns, -std::numeric_limits<A>::infinity());
    std::fill_n(place.data, columns, Index(0));
    for (int64_t key = 0; key < args.k.positions; key += block) {
      const int64_t count = std::min(block, args.k.positions - key);
      multiply(b, query, live, key, count);
      choose(key, count);
    }
    for (int64_t p = 0; p < live; ++p) {
      args.index[row + p] = place[p];
      static_cast<A*>(args.similarity)[row + p] = best[p] / query_length[p];
    }
  }
};

inline void dense_match_cpu(const DenseMatchArgs& args, const Parallel& parallel) {
  with_type(args.q.dtype, [&](auto type) {
    using T = decltype(type);
#ifdef AVFAST_BF16_DOT
    using U = std::conditional_t<std::is_same_v<T, bf16_t>, bf16x2_t, Acc<T>>;
#else
    using U = Acc<T>;
#endif
    using Match = DenseMatch<T, U>;
    const int64_t panels = (args.q.positions + Match::columns - 1) / Match::columns;
    const int64_t work = args.q.rows() * args.k.positions / 64 * args.q.depth;
    for_tasks(parallel, args.q.batch * panels, work, [&](int64_t begin, int64_t end) {
      Match match{args};
      for (int64_t t = begin; t < end; ++t) match.panel(t / panels, t % panels * Match::columns);
    });
  });
}
