// Cross-attention backward. One task has all queries and exemplars of some heads, so dq is summed where it lies and stored once,
// and dk and dv belong to nobody else. Probabilities are made again from queries, keys and the log-sum-exp.

template <typename T>
struct CorrelateBackward {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>, panel = correlate_panel<A>;

  const CorrelateBwdArgs& args;
  const CorrelateArgs& in = args.in;
  const int64_t first, heads;
  const int64_t padded = whole_vectors(in.queries, lanes), width = whole_vectors(in.depth, lanes);
  const bool whole = std::is_same_v<T, A> && in.depth % lanes == 0;  // rows of vectors are read where they lie
  Keys<T> keys{in, in.k, first, heads}, values{in, in.v, first, heads};
  Scratch<A> columns_of_q{heads * padded * in.depth, uncleared}, rows_of_q{whole ? 0 : heads * in.queries * width};
  Scratch<A> dq{heads * in.queries * width}, dk{in.keys * width, uncleared}, dv{in.keys * width, uncleared};
  Scratch<A> columns_of_grad{in.depth * panel, uncleared}, rows_of_grad{whole ? 0 : panel * width};
  Scratch<A> scores{in.keys * panel, uncleared}, dscores{in.keys * panel, uncleared};
  Scratch<A> grad_map{in.map == CorrelateArgs::mean_prob ? in.keys * panel : 0};
  Scratch<int64_t> index{in.keys};

  // Rows of `count` positions as whole vectors: where they lie, or copied.
  const A* as_rows(const T* x, int64_t count, int64_t stride, A* copy, int64_t* row) {
    if constexpr (std::is_same_v<T, A>) {
      if (whole) {
        *row = stride;
        return x;
      }
    }
    *row = width;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < width; c += lanes) store<A>(copy + i * width + c, load_up_to(x + i * stride + c, in.depth - c));
    return copy;
  }

  // Scores and gradients of probabilities become probabilities and gradients of scores.
  void differentiate(int64_t count, int64_t columns, int64_t live, const A* lse, const A* grad) {
    const A share = A(1) / A(in.heads);
    for (int64_t p = 0; p < columns; p += lanes) {
      A *s = scores.data + p, *d = dscores.data + p;
      const V<A> shift = load_up_to(lse + p, live - p) * splat<A>(A(log2_of_e));
      V<A> extra{}, sum{};
      M<A> largest{};
      if (in.map == CorrelateArgs::lse || in.map == CorrelateArgs::max) extra = load_up_to(grad + p, live - p) * splat<A>(share);
      if (in.map == CorrelateArgs::max) largest = first_largest(s, count, columns);
      for (int64_t j = 0; j < count; ++j) {
        const V<A> prob = exp2_v<A>(load<A>(s + j * columns) - shift);
        V<A> dprob = load<A>(d + j * columns);
        if (in.map == CorrelateArgs::mean_prob) {
          dprob += load<A>(grad_map.data + index[j] * columns + p) * splat<A>(share);
          store<A>(d + j * columns, dprob);
        }
        sum += prob * dprob;
        store<A>(s + j * columns, prob);
      }
      if (in.map == CorrelateArgs::lse) sum -= extra;
      for (int64_t j = 0; j < count; ++j) {
        V<A> dscore = load<A>(s + j * columns) * (load<A>(d + j * columns) - sum);
        if (in.map == CorrelateArgs::max)
          dscore += select<A>(largest == typename Vec<A>::bits(j), extra, V<A>{});
        store<A>(d + j * columns, dscore);
      }
    }
  }

  static M<A> first_largest(const A* s, int64_t count, int64_t columns) {
    V<A> top = load<A>(s);
    M<A> at{};
    for (int64_t j = 1; j < count; ++j) {
      const V<A> x = load<A>(s + j * columns);
      const M<A> better = x > top;
      top = select<A>(better, x, top);
      at = better ? M<A>{} + typename Vec<A>::bits(j) : at;
    }
    return at;
  }

  void run(int64_t b) {
    const T* q = static_cast<const T*>(in.q.data) + b * in.q.stride_b + first * in.q.stride_h;
    const A* rows = nullptr;
    int64_t row = 0, next = whole ? in.q.stride_h : in.queries * width;
    for (int64_t h = heads; h-- > 0;) {
      for (int64_t i = 0; i < in.queries; i += panel) {
        const int64_t live = std::min(panel, in.queries - i);
        pack_scaled(
            q + h * in.q.stride_h + i * in.q.stride_n, in.depth, live, whole_vectors(live, lanes), in.q.stride_n,
            A(in.scale * log2_of_e), columns_of_q.data + (h * padded + i) * in.depth);
      }
      rows = as_rows(q + h * in.q.stride_h, in.queries, in.q.stride_n, rows_of_q.data + (whole ? 0 : h * next), &row);
    }
    for (int64_t e = 0; e < in.exemplars; ++e) {
      const int64_t count = in.queries ? allowed_keys(in, b, e, index.data) : 0;
      if (count) {
        keys.take(b, e, index.data, count);
        values.take(b, e, index.data, count);
      }
      for (int64_t h = 0; h < heads; ++h) {
        if (count) head(b, e, h, count, rows + h * next, row);
        const int64_t at = (b * in.exemplars + e) * in.keys * in.heads + first + h;
        write_keys(dk.data, count, A(in.scale), static_cast<T*>(args.dk) + at * in.depth);
        write_keys(dv.data, count, A(1), static_cast<T*>(args.dv) + at * in.depth);
      }
    }
    T* to = static_cast<T*>(args.dq) + (b * in.queries * in.heads + first) * in.depth;
    for (int64_t i = 0; i < in.queries; ++i, to += in.heads * in.depth)
      for (int64_t h = 0; h < heads; ++h) write_row(dq.data + (h * in.queries + i) * width, A(in.scale), to + h * in.depth);
  }

  void head(int64_t b, int64_t e, int64_t h, int64_t count, const A* rows, int64_t q_row) {
    const int64_t sample = b * in.exemplars + e, wide = in.heads * in.depth;
    const A *key = keys.data + h * keys.head, *value = values.data + h * values.head;
    int64_t grad_row;
    for (int64_t i = 0; i < in.queries; i += panel) {
      const int64_t live = std::min(panel, in.queries - i), columns = whole_vectors(live, lanes), vectors = columns / lanes;
      const T* grad = static_cast<const T*>(args.grad_out) + (sample * in.queries + i) * wide + (first + h) * in.depth;
      pack(grad, in.depth, live, columns, 1, wide, columns_of_grad.data);
      const A* grad_rows = as_rows(grad, live, wide, rows_of_grad.data, &grad_row);
      const A* lse = static_cast<const A*>(args.lse) + (sample * in.heads + first + h) * in.queries + i;
      const A* grad_heat = static_cast<const A*>(args.grad_map);
      if (in.map == CorrelateArgs::mean_prob)
        pack(grad_heat + (sample * in.queries + i) * in.keys, in.keys, live, columns, 1, in.keys, grad_map.data);
      else
        grad_heat += in.map ? sample * in.queries + i : 0;
      multiply<A>(
          count, vectors, in.depth, key, keys.row, 1, columns_of_q.data + (h * padded + i) * in.depth, columns, scores.data,
          columns, false);
      multiply<A>(count, vectors, in.depth, value, values.row, 1, columns_of_grad.data, columns, dscores.data, columns, false);
      differentiate(count, columns, live, lse, grad_heat);
      multiply<A>(count, width / lanes, live, scores.data, columns, 1, grad_rows, grad_row, dv.data, width, i > 0);
      multiply<A>(count, width / lanes, live, dscores.data, columns, 1, rows + i * q_row, q_row, dk.data, width, i > 0);
      multiply<A>(
          live, width / lanes, count, dscores.data, 1, columns, key, keys.row, dq.data + (h * in.queries + i) * width, width,
          true);
    }
  }

  void write_row(const A* x, A scale, T* to) const {
    for (int64_t c = 0; c < in.depth; c += lanes) store_up_to(to + c, load<A>(x + c) * splat<A>(scale), in.depth - c);
  }

  // Gradients of the keys that were attended, zeros for the others.
  void write_keys(const A* x, int64_t count, A scale, T* to) const {
    for (int64_t j = 0, next = 0; j < in.keys; ++j, to += in.heads * in.depth) {
      if (next < count && index[next] == j) write_row(x + next++ * width, scale, to);
      else std::memset(static_cast<void*>(to), 0, size_t(in.depth) * sizeof(T));
    }
  }
};

inline void correlate_bwd_cpu(const CorrelateBwdArgs& args, const Parallel& parallel) {
  with_type(args.in.dtype, [&](auto type) {
    using Backward = CorrelateBackward<decltype(type)>;
    const CorrelateArgs& in = args.in;
    const int64_t heads = std::clamp<int64_t>(in.batch * in.heads / 64, 1, std::min<int64_t>(4, in.heads));
    const int64_t groups = (in.heads + heads - 1) / heads;
    const int64_t work = in.batch * in.exemplars * (in.queries + 1) * in.heads * (in.keys + 1) * in.depth / 16;
    for_tasks(parallel, in.batch * groups, work, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t first = t % groups * heads;
        Backward{args, args.in, first, std::min(heads, in.heads - first)}.run(t / groups);
      }
    });
  });
}
