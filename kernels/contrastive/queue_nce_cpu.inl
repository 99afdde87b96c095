// Loss of each query against its positive and a queue of negatives, and the gradient of the query, in one read of the queue.

// What is kept of a panel's softmax over some keys: sum_j 2^(t_j - shift), the same sum weighted by the keys, and the shift.
template <typename A>
struct SoftmaxPart {
  double* sum;   // [columns]
  A* shift;      // [columns], in powers of two
  A* weighted;   // [D][columns], null where no gradient is asked
};

template <typename U>
struct QueuePanel {
  using A = Acc<U>;
  const U* rows;   // [units of D][columns]
  const A* scale;  // [columns]: raw products to powers of two
  int64_t depth;
};

template <typename U, int NV>
inline void add_block_fixed(
    const KeyBlock<U>& keys, int64_t count, const QueuePanel<U>& panel, U* weights, const SoftmaxPart<Acc<U>>& part) {
  using A = Acc<U>;
  constexpr int64_t lanes = lanes_of<A>;
  V<A> scale[NV], shift[NV], sum[NV] = {};
  for (int v = 0; v < NV; ++v) scale[v] = load<A>(panel.scale + v * lanes), shift[v] = load<A>(part.shift + v * lanes);
  score_tiles<U, NV>(keys, count, panel.rows, panel.depth, [&](int64_t j, auto rows, auto& tile) {
    for_tile(tile, [&](int, int v, V<A>& x) {
      x = exp2_v<A>(x * scale[v] - shift[v]);
      sum[v] += x;
    });
    if (part.weighted) store_weights<U>(weights, j, tile);
  });
  for (int v = 0; v < NV; ++v)
    for (int64_t c = 0; c < lanes; ++c) part.sum[v * lanes + c] += double(sum[v][c]);
  if (part.weighted) add_weighted_keys<U, NV>(keys, count, weights, panel.depth, part.weighted);
}

// The same with the largest logit so far as the shift: for logits whose range a fixed shift cannot hold.
template <typename U, int NV>
inline void add_block_online(
    const KeyBlock<U>& keys, int64_t count, const QueuePanel<U>& panel, U* weights, const SoftmaxPart<Acc<U>>& part) {
  using A = Acc<U>;
  constexpr int64_t lanes = lanes_of<A>, columns = NV * lanes;
  Scratch<A> logits(key_block * columns);
  V<A> scale[NV], shift[NV], sum[NV] = {};
  for (int v = 0; v < NV; ++v) scale[v] = load<A>(panel.scale + v * lanes), shift[v] = load<A>(part.shift + v * lanes);
  score_tiles<U, NV>(keys, count, panel.rows, panel.depth, [&](int64_t j, auto rows, auto& tile) {
    for_tile(tile, [&](int r, int v, const V<A>& x) {
      const V<A> t = x * scale[v];
      shift[v] = select<A>(t > shift[v], t, shift[v]);
      store<A>(logits.data + (j + r) * columns + v * lanes, t);
    });
  });
  for (int v = 0; v < NV; ++v) {
    const V<A> before = load<A>(part.shift + v * lanes), shrink = exp2_v<A>(before - shift[v]);
    store<A>(part.shift + v * lanes, shift[v]);
    for (int64_t c = 0; c < lanes; ++c) part.sum[v * lanes + c] *= double(shrink[c]);
    if (part.weighted)
      for (int64_t d = 0; d < panel.depth; ++d) {
        A* line = part.weighted + d * columns + v * lanes;
        store<A>(line, load<A>(line) * shrink);
      }
  }
  for (int64_t j = 0; j < count; j += gemm_rows<A>) {
    with_rows<gemm_rows<A>>(count - j, [&](auto rows) {
      V<A> tile[rows()][NV];
      for_tile(tile, [&](int r, int v, V<A>& x) {
        x = exp2_v<A>(load<A>(logits.data + (j + r) * columns + v * lanes) - shift[v]);
        sum[v] += x;
      });
      if (part.weighted) store_weights<U>(weights, j, tile);
    });
  }
  for (int v = 0; v < NV; ++v)
    for (int64_t c = 0; c < lanes; ++c) part.sum[v * lanes + c] += double(sum[v][c]);
  if (part.weighted) add_weighted_keys<U, NV>(keys, count, weights, panel.depth, part.weighted);
}

template <typename T, typename U>
struct QueueNce {
  using A = Acc<U>;
  const QueueNceFwdArgs& args;
  const int64_t depth = args.q.depth, keys = args.queue.size;
  const RowPanels<A> panels{args.q.rows()};
  // Few rows: the queue is cut as well, into parts that are added in order.
  const int64_t segments = std::clamp<int64_t>(16 / std::max<int64_t>(panels.count, 1), 1, std::max<int64_t>(keys / 2048, 1));
  const int64_t padded = panels.padded();
  const int64_t width = units<U>(depth);
  // Where 2 / temperature exceeds what a float's exponent holds, a fixed shift is not worth trying.
  const bool online = args.normalize && 2 * log2_of_e / args.temperature > 100;
  Scratch<U> packed{padded * width};
  Scratch<A> scale{padded}, shift{segments * padded};
  Scratch<A> weighted{args.dq ? segments * padded * depth : 0};
  Scratch<double> squares{padded}, sum{segments * padded};

  SoftmaxPart<A> part(int64_t segment, int64_t p) const {
    const int64_t at = segment * padded + panels.first(p);
    return {sum.data + at, shift.data + at, args.dq ? weighted.data + at * depth : nullptr};
  }
  QueuePanel<U> panel(int64_t p) const {
    return {packed.data + panels.first(p) * width, scale.data + panels.first(p), depth};
  }

  // Packs panel p and starts its sums. Unit rows have logits of at most 1 / temperature, others |q| / temperature for unit
  // keys: that is the fixed shift. `check` tells afterwards whether it held.
  void prepare(int64_t p) {
    const int64_t first = panels.first(p), columns = panels.columns(p), live = panels.live(p);
    Scratch<int64_t> offsets(columns);
    row_offsets(args.q, first, live, offsets.data);
    U* rows = packed.data + first * width;
    pack_panel<U>(static_cast<const T*>(args.q.data), offsets.data, live, columns, depth, args.q.stride_d, rows);
    panel_squares(rows, columns, depth, squares.data + first);
    for (int64_t c = first; c < first + columns; ++c) {
      const double by = (args.normalize ? inverse_length(squares[c]) : 1.0) * log2_of_e / args.temperature;
      const A start = online ? -std::numeric_limits<A>::max() : A(std::sqrt(squares[c]) * by);
      scale[c] = A(by);
      for (int64_t s = 0; s < segments; ++s) shift[s * padded + c] = start;
    }
    for (int64_t s = 0; s < segments; ++s) clear(part(s, p), columns);
  }

  void clear(const SoftmaxPart<A>& part, int64_t columns) const {
    std::fill_n(part.sum, columns, 0.0);
    if (part.weighted) std::fill_n(part.weighted, columns * depth, A(0));
  }

  // Adds the keys of one segment to panels [first, last): blocks outside, so that a packed block serves every panel.
  void stream(int64_t segment, int64_t first, int64_t last, bool running_maximum) {
    const int64_t blocks = (keys + key_block - 1) / key_block;
    const int64_t begin = blocks * segment / segments * key_block;
    const int64_t end = std::min(blocks * (segment + 1) / segments * key_block, keys);
    KeyReader<U> reader(args.queue, depth);
    Scratch<U> weights(units<U>(key_block) * panel_columns<A>);
    for (int64_t k = begin; k < end; k += key_block) {
      const int64_t count = std::min(key_block, end - k);
      KeyBlock<U> block = reader.read(k, count);
      for (int64_t p = first; p < last; ++p) {
        block.ahead = p == first && reader.in_place && k + 2 * key_block <= end ? block.along_d + key_block * block.row : nullptr;
        with_width<A>(panels.width(p), [&](auto nv) {
          if (running_maximum)
            add_block_online<U, nv()>(block, count, panel(p), weights.data, part(segment, p));
          else
            add_block_fixed<U, nv()>(block, count, panel(p), weights.data, part(segment, p));
        });
      }
    }
  }

  // Whether the fixed shift lost nothing: every sum is finite and far above the smallest number.
  bool fits(int64_t p) const {
    for (int64_t c = panels.first(p); c < panels.first(p) + panels.live(p); ++c) {
      double total = 0;
      for (int64_t s = 0; s < segments; ++s) total += sum[s * padded + c];
      if (!(total > 0x1p-80 && total < 0x1p100)) return false;
    }
    return true;
  }

  void restart_online(int64_t p) {
    const int64_t columns = panels.columns(p);
    for (int64_t s = 0; s < segments; ++s) {
      std::fill_n(part(s, p).shift, columns, -std::numeric_limits<A>::max());
      clear(part(s, p), columns);
      stream(s, p, p + 1, true);
    }
  }

  void finish(int64_t p);

  void run(const Parallel& parallel) {
    const int64_t work = panels.rows * std::max<int64_t>(keys, 1) / 64 * depth;
    for_tasks(parallel, panels.count, panels.rows * depth, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) prepare(p);
    });
    for_tasks(parallel, segments * panels.count, work, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end;) {  // the panels of one segment together
        const int64_t segment = t / panels.count, last = std::min(end, (segment + 1) * panels.count);
        stream(segment, t - segment * panels.count, last - segment * panels.count, online);
        t = last;
      }
    });
    for_tasks(parallel, panels.count, work, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        if (keys > 0 && !fits(p)) restart_online(p);
        finish(p);
      }
    });
  }
};

// Joins the segments in order, adds the positive outside the tiles, and writes losses and gradients.
template <typename T, typename U>
void QueueNce<T, U>::finish(int64_t p) {
  const int64_t first = panels.first(p), columns = panels.columns(p), live = panels.live(p);
  const T* q = static_cast<const T*>(args.q.data);
  const T* k = static_cast<const T*>(args.k.data);
  A *loss = static_cast<A*>(args.loss), *positive = static_cast<A*>(args.positive), *lse = static_cast<A*>(args.lse);
  A* dq = static_cast<A*>(args.dq);
  Scratch<int64_t> q_offsets(columns);
  row_offsets(args.q, first, live, q_offsets.data);
  Scratch<A> gradient(depth);
  for (int64_t c = 0; c < live; ++c) {
    const int64_t row = first + c, b = row / args.q.positions, s = row % args.q.positions;
    const int64_t at = args.match ? args.match[row] : s;
    A* out = dq ? dq + b * depth * args.q.positions + s : nullptr;
    if (at < 0) {
      loss[row] = positive[row] = lse[row] = A(0);
      for (int64_t d = 0; out && d < depth; ++d) out[d * args.q.positions] = A(0);
      continue;
    }
    const T* query = q + q_offsets[c];
    const T* key = k + b * args.k.stride_b + at * args.k.stride_s;
    double dot = 0, key_squares = 0;
    for (int64_t d = 0; d < depth; ++d) {
      const double x = double(to_float(key[d * args.k.stride_d]));
      dot += x * double(to_float(query[d * args.q.stride_d]));
      key_squares += x * x;
    }
    const double q_inverse = args.normalize ? inverse_length(squares[row]) : 1.0;
    const double k_inverse = args.normalize ? inverse_length(key_squares) : 1.0;
    const double match_logit = dot * q_inverse * k_inverse / args.temperature;

    double top = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t g = 0; g < segments; ++g) top = std::max(top, double(shift[g * padded + row]));
    for (int64_t g = 0; g < segments; ++g)
      total += sum[g * padded + row] * std::exp2(double(shift[g * padded + row]) - top);
    const double negatives = std::log(total) + top * natural_log_of_2, gap = negatives - match_logit;
    const double value = gap <= 0 ? std::log1p(std::exp(gap)) : gap + std::log1p(std::exp(-gap));
    loss[row] = A(value), positive[row] = A(match_logit), lse[row] = A(match_logit + value);
    if (!out) continue;

    // g = (1/temperature) (sum_j p_j queue_j - (sum_j p_j) k+)
    const double negative_share = keys > 0 ? std::exp(negatives - match_logit - value) : 0.0;
    const A key_factor = A(-negative_share * k_inverse / args.temperature);
    for (int64_t d = 0; d < depth; ++d) gradient[d] = key_factor * A(to_float(key[d * args.k.stride_d]));
    for (int64_t g = 0; g < segments && keys > 0; ++g) {
      const double shift_g = double(shift[g * padded + row]) * natural_log_of_2;
      const A factor = A(std::exp(shift_g - match_logit - value) / args.temperature);
      const A* part_of_row = part(g, p).weighted + c;
      for (int64_t d = 0; d < depth; ++d) gradient[d] += factor * part_of_row[d * columns];
    }
    double along = 0;  // <q^, g>, which normalisation removes; a row below 1e-12 is only scaled
    if (args.normalize && squares[row] > 1e-24) {
      for (int64_t d = 0; d < depth; ++d) along += double(to_float(query[d * args.q.stride_d])) * double(gradient[d]);
      along /= squares[row];
    }
    for (int64_t d = 0; d < depth; ++d) {
      const double x = double(to_float(query[d * args.q.stride_d]));
      out[d * args.q.positions] = A((double(gradient[d]) - along * x) * q_inverse);
    }
  }
}

inline void queue_nce_fwd_cpu(const QueueNceFwdArgs& args, const Parallel& parallel) {
  if (args.q.rows() == 0) return;
  with_type(args.q.dtype, [&](auto type) {
    using T = decltype(type);
#ifdef AVFAST_BF16_DOT
    if constexpr (std::is_same_v<T, bf16_t>) {
      QueueNce<T, bf16x2_t>{args}.run(parallel);
      return;
    }
#endif
    QueueNce<T, Acc<T>>{args}.run(parallel);
  });
}
