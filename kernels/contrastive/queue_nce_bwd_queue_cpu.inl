// Gradient of the queue: dqueue_j = (1/temperature) sum_i grad_i p_ij q_i. The same products as the loss with the parts exchanged:
// panels of queue rows, blocks of queries.

template <typename T, typename U>
struct QueueGradient {
  using A = Acc<U>;
  const QueueNceBwdQueueArgs& args;
  const int64_t depth = args.q.depth, rows = args.q.rows();
  const RowPanels<A> panels{args.queue.size};
  Scratch<T> queries{rows * depth};  // [N, D]
  // Of each query: raw product to powers of two, its log-sum-exp in them, and what its probabilities are worth.
  Scratch<A> scale{rows}, shift{rows}, worth{rows};

  void prepare(int64_t row) {
    const int64_t b = row / args.q.positions, s = row % args.q.positions;
    const T* from = static_cast<const T*>(args.q.data) + b * args.q.stride_b + s * args.q.stride_s;
    T* to = queries.data + row * depth;
    double squares = 0;
    for (int64_t d = 0; d < depth; ++d) {
      to[d] = from[d * args.q.stride_d];
      squares += double(to_float(to[d])) * double(to_float(to[d]));
    }
    const double inverse = args.normalize ? inverse_length(squares) : 1.0;
    const bool excluded = args.match && args.match[row] < 0;
    const double grad = double(static_cast<const A*>(args.grad)[row]);
    scale[row] = excluded ? A(0) : A(inverse * log2_of_e / args.temperature);
    shift[row] = excluded ? A(0) : A(double(static_cast<const A*>(args.lse)[row]) * log2_of_e);
    worth[row] = excluded ? A(0) : A(grad * inverse / args.temperature);
    if (excluded) std::fill_n(to, depth, T{});
  }

  template <int NV, typename TQ>
  void panel(int64_t p, KeyReader<U>& reader, U* packed, U* weights, A* total) {
    const int64_t first = panels.first(p), columns = NV * lanes_of<A>, live = panels.live(p);
    int64_t offsets[panel_columns<A>];
    for (int64_t c = 0; c < live; ++c) offsets[c] = (first + c) * args.queue.stride_k;
    pack_panel<U>(static_cast<const TQ*>(args.queue.data), offsets, live, columns, depth, args.queue.stride_d, packed);
    std::fill_n(total, columns * depth, A(0));
    for (int64_t k = 0; k < rows; k += key_block) {
      const int64_t count = std::min(key_block, rows - k);
      const KeyBlock<U> block = reader.read(k, count);
      score_tiles<U, NV>(block, count, packed, depth, [&](int64_t j, auto, auto& tile) {
        for_tile(tile, [&](int r, int, V<A>& x) {
          const int64_t i = k + j + r;
          x = exp2_v<A>(x * splat<A>(scale[i]) - splat<A>(shift[i])) * splat<A>(worth[i]);
        });
        store_weights<U>(weights, j, tile);
      });
      add_weighted_keys<U, NV>(block, count, weights, depth, total);
    }
    TQ* out = static_cast<TQ*>(args.dqueue) + first * depth;
    for (int64_t c = 0; c < live; ++c)
      for (int64_t d = 0; d < depth; ++d) out[c * depth + d] = from_float<TQ>(Acc<TQ>(total[d * columns + c]));
  }

  void run(const Parallel& parallel) {
    for_tasks(parallel, rows, rows * depth, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) prepare(row);
    });
    const DType type = std::is_same_v<T, double> ? DType::f64
                       : std::is_same_v<T, f16_t> ? DType::f16
                       : std::is_same_v<T, bf16_t> ? DType::bf16
                                                   : DType::f32;
    const Queue as_keys{queries.data, type, rows, depth, 1};
    for_tasks(parallel, panels.count, panels.rows * std::max<int64_t>(rows, 1) / 64 * depth, [&](int64_t begin, int64_t end) {
      KeyReader<U> reader(as_keys, depth);
      Scratch<U> packed(panel_columns<A> * units<U>(depth)), weights(panel_columns<A> * units<U>(key_block));
      Scratch<A> total(panel_columns<A> * depth);
      for (int64_t p = begin; p < end; ++p) {
        with_type(args.queue.dtype, [&](auto queue_type) {
          using TQ = decltype(queue_type);
          with_width<A>(panels.width(p), [&](auto nv) {
            this->template panel<nv(), TQ>(p, reader, packed.data, weights.data, total.data);
          });
        });
      }
    });
  }
};

inline void queue_nce_bwd_queue_cpu(const QueueNceBwdQueueArgs& args, const Parallel& parallel) {
  if (args.queue.size == 0) return;
  with_type(args.q.dtype, [&](auto type) {
    using T = decltype(type);
#ifdef AVFAST_BF16_DOT
    if constexpr (std::is_same_v<T, bf16_t>) {
      QueueGradient<T, bf16x2_t>{args}.run(parallel);
      return;
    }
#endif
    QueueGradient<T, Acc<T>>{args}.run(parallel);
  });
}
