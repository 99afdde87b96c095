// A linear layer over two modalities, forward. Rows are sorted by what they have, so that each modality's rows are one range and what
// is absent costs neither a load nor a product. The concatenation is never built.

// Rows in the order audio alone, both, video alone, neither; the same for every number of threads.
struct PresentRows {
  Scratch<int64_t> order;
  int64_t a_end, v_begin, v_end;  // audio in [0, a_end), video in [v_begin, v_end)

  PresentRows(int64_t rows, const bool* mask_a, const bool* mask_v) : order(rows + 1, uncleared) {
    const auto kind = [&](int64_t r) {
      const bool a = !mask_a || mask_a[r], v = !mask_v || mask_v[r];
      return a ? int(v) : v ? 2 : 3;
    };
    int64_t count[4] = {}, at[4] = {};
    for (int64_t r = 0; r < rows; ++r) ++count[kind(r)];
    for (int k = 1; k < 4; ++k) at[k] = at[k - 1] + count[k - 1];
    a_end = at[2], v_begin = at[1], v_end = at[3];
    for (int64_t r = 0; r < rows; ++r) order[at[kind(r)]++] = r;
  }
};

// Positions [begin, end) of a range that lie in a tile.
struct Overlap {
  int64_t begin, count;
  Overlap(int64_t low, int64_t high, int64_t first, int64_t last)
      : begin(std::max(low, first)), count(std::max<int64_t>(0, std::min(high, last) - begin)) {}
};

template <typename A>
constexpr int64_t concat_tile = 16 * gemm_rows<A>;

// Rows `index` of x [*, depth] as the wide type: where they lie if they are neighbours, else copied.
template <typename T>
inline const Acc<T>* gathered(const T* x, int64_t depth, const int64_t* index, int64_t count, Acc<T>* copy, int64_t* stride) {
  using A = Acc<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (count && index[count - 1] - index[0] == count - 1) {  // the order within a kind is that of the rows
      bool neighbours = true;
      for (int64_t i = 1; i < count; ++i) neighbours &= index[i] == index[0] + i;
      if (neighbours) {
        *stride = depth;
        return x + index[0] * depth;
      }
    }
  }
  *stride = whole_vectors(depth, lanes_of<A>);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < depth; d += lanes_of<A>)
      store<A>(copy + i * *stride + d, load_up_to(x + index[i] * depth + d, depth - d));
  return copy;
}

// A matrix [depth, columns] cut into panels [depth][panel_columns], zeros past the last column; shared by all tasks.
template <typename T>
struct WidePanels {
  using A = Acc<T>;
  static constexpr int64_t width = panel_columns<A>;

  int64_t depth, columns, count;
  Scratch<A> data;

  WidePanels(int64_t depth, int64_t columns)
      : depth(depth), columns(columns), count((columns + width - 1) / width), data(count * depth * width + 1, uncleared) {}

  A* at(int64_t p) const { return data.data + p * depth * width; }
  int64_t live(int64_t p) const { return std::min(width, columns - p * width); }
  int64_t vectors(int64_t p) const { return (live(p) + lanes_of<A> - 1) / lanes_of<A>; }
  void fill(int64_t p, const T* x, int64_t stride_k, int64_t stride_c) const {
    pack(x + p * width * stride_c, depth, live(p), width, stride_k, stride_c, at(p));
  }
};

template <typename T>
struct ConcatLinearForward {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>, width = panel_columns<A>, tile = concat_tile<A>;

  const ConcatLinearFwdArgs& args;
  const ConcatLinearArgs& in = args.in;
  const PresentRows& rows;
  const WidePanels<T>&of_a, &of_v;
  Scratch<A> copy_a{tile * whole_vectors(in.depth_a, lanes), uncleared}, copy_v{tile * whole_vectors(in.depth_v, lanes), uncleared};
  Scratch<A> sums{tile * width, uncleared};

  void run(int64_t first) const {
    const int64_t last = std::min(first + tile, in.rows);
    const Overlap with_a(0, rows.a_end, first, last), with_v(rows.v_begin, rows.v_end, first, last);
    int64_t row_a, row_v;
    const int64_t* order = rows.order.data;
    const A* a = gathered(static_cast<const T*>(in.a), in.depth_a, order + with_a.begin, with_a.count, copy_a.data, &row_a);
    const A* v = gathered(static_cast<const T*>(in.v), in.depth_v, order + with_v.begin, with_v.count, copy_v.data, &row_v);
    for (int64_t p = 0; p < of_a.count; ++p) {
      const int64_t vectors = of_a.vectors(p), live = of_a.live(p);
      for (int64_t c = 0; c < vectors * lanes; c += lanes) {
        const V<A> bias = args.bias ? load_up_to(static_cast<const T*>(args.bias) + p * width + c, live - c) : V<A>{};
        for (int64_t i = 0; i < last - first; ++i) store<A>(sums.data + i * width + c, bias);
      }
      const auto to = [&](int64_t position) { return sums.data + (position - first) * width; };
      multiply<A>(with_a.count, vectors, in.depth_a, a, row_a, 1, of_a.at(p), width, to(with_a.begin), width, true);
      multiply<A>(with_v.count, vectors, in.depth_v, v, row_v, 1, of_v.at(p), width, to(with_v.begin), width, true);
      for (int64_t i = 0; i < last - first; ++i) {
        T* out = static_cast<T*>(args.out) + order[first + i] * in.classes + p * width;
        for (int64_t c = 0; c < live; c += lanes) store_up_to(out + c, load<A>(sums.data + i * width + c), live - c);
      }
    }
  }
};

// Multiplications of a call, as for_tasks counts work.
inline int64_t concat_work(const ConcatLinearArgs& in) { return in.rows * in.classes * (in.depth_a + in.depth_v) / 16; }

inline void concat_linear_fwd_cpu(const ConcatLinearFwdArgs& args, const Parallel& parallel) {
  with_type(args.in.dtype, [&](auto type) {
    using T = decltype(type);
    const ConcatLinearArgs& in = args.in;
    const PresentRows rows(in.rows, in.mask_a, in.mask_v);
    const WidePanels<T> of_a(in.depth_a, in.classes), of_v(in.depth_v, in.classes);
    const int64_t wide = in.depth_a + in.depth_v, tile = concat_tile<Acc<T>>;
    const T* weight = static_cast<const T*>(in.weight);
    for_tasks(parallel, of_a.count, in.classes * wide, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        of_a.fill(p, weight, 1, wide);
        of_v.fill(p, weight + in.depth_a, 1, wide);
      }
    });
    for_tasks(parallel, (in.rows + tile - 1) / tile, concat_work(in), [&](int64_t begin, int64_t end) {
      const ConcatLinearForward<T> forward{args, in, rows, of_a, of_v};
      for (int64_t t = begin; t < end; ++t) forward.run(t * tile);
    });
  });
}
