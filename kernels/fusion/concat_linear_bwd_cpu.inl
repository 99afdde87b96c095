// A linear layer over two modalities, backward: gradients of what is there, zeros for what is not.

template <typename T>
struct ConcatLinearInputs {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>, width = panel_columns<A>, tile = concat_tile<A>;

  const ConcatLinearBwdArgs& args;
  const ConcatLinearArgs& in = args.in;
  const PresentRows& rows;
  const WidePanels<T>&of_a, &of_v;  // of the weight: [C][Da], [C][Dv]
  Scratch<A> copy{tile * whole_vectors(in.classes, lanes), uncleared}, sums{tile * width, uncleared};

  void run(int64_t first) const {
    const int64_t last = std::min(first + tile, in.rows);
    int64_t row;
    const A* grad = gathered(
        static_cast<const T*>(args.grad), in.classes, rows.order.data + first, last - first, copy.data, &row);
    one(grad, row, first, last, 0, rows.a_end, of_a, static_cast<T*>(args.da));
    one(grad, row, first, last, rows.v_begin, rows.v_end, of_v, static_cast<T*>(args.dv));
  }

  void one(
      const A* grad, int64_t row, int64_t first, int64_t last, int64_t low, int64_t high, const WidePanels<T>& weight, T* to) const {
    if (!to) return;
    const Overlap there(low, high, first, last);
    const int64_t* order = rows.order.data;
    for (int64_t i = first; i < last; ++i)
      if (i < low || i >= high) std::memset(static_cast<void*>(to + order[i] * weight.columns), 0, size_t(weight.columns) * sizeof(T));
    if (!there.count) return;
    for (int64_t p = 0; p < weight.count; ++p) {
      multiply<A>(
          there.count, weight.vectors(p), in.classes, grad + (there.begin - first) * row, row, 1, weight.at(p), width, sums.data,
          width, false);
      for (int64_t i = 0; i < there.count; ++i) {
        T* out = to + order[there.begin + i] * weight.columns + p * width;
        for (int64_t c = 0; c < weight.live(p); c += lanes)
          store_up_to(out + c, load<A>(sums.data + i * width + c), weight.live(p) - c);
      }
    }
  }
};

// Columns of the weight's gradient: one task has all classes of some panels of channels, and sums over rows in blocks, in order.
template <typename T>
struct ConcatLinearWeight {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>, width = panel_columns<A>, height = gemm_rows<A>, block = 256;

  const ConcatLinearBwdArgs& args;
  const ConcatLinearArgs& in = args.in;
  const PresentRows& rows;
  const int64_t strips = (in.classes + height - 1) / height;
  const int64_t panels_a = (in.depth_a + width - 1) / width, panels_v = (in.depth_v + width - 1) / width;
  // Strips of `height` classes, row by row, so that a tile reads its scalars one after the other.
  Scratch<A> grad{strips * block * height}, values{block * width, uncleared};

  void run(int64_t begin, int64_t end) const {
    Scratch<A> sums((end - begin) * strips * height * width);
    for (int64_t first = 0; first < rows.v_end; first += block) {
      const int64_t last = std::min(first + block, rows.v_end);
      take_gradient(first, last);
      for (int64_t t = begin; t < end; ++t) add(t, first, last, sums.data + (t - begin) * strips * height * width);
    }
    for (int64_t t = begin; t < end; ++t) write(t, sums.data + (t - begin) * strips * height * width);
  }

  void take_gradient(int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; ++i) {
      const T* row = static_cast<const T*>(args.grad) + rows.order[i] * in.classes;
      A* to = grad.data + (i - first) * height;
      for (int64_t c = 0; c < in.classes; c += height, to += block * height)
        for (int64_t j = 0; j < std::min(height, in.classes - c); ++j) to[j] = A(to_float(row[c + j]));
    }
  }

  void add(int64_t t, int64_t first, int64_t last, A* sums) const {
    const bool of_a = t < panels_a;
    const int64_t depth = of_a ? in.depth_a : in.depth_v, from = (of_a ? t : t - panels_a) * width, live = std::min(width, depth - from);
    const Overlap there(of_a ? 0 : rows.v_begin, of_a ? rows.a_end : rows.v_end, first, last);
    if (!there.count) return;
    const T* x = static_cast<const T*>(of_a ? in.a : in.v) + from;
    const int64_t vectors = (live + lanes - 1) / lanes;
    for (int64_t i = 0; i < there.count; ++i)
      for (int64_t c = 0; c < vectors * lanes; c += lanes)
        store<A>(values.data + i * width + c, load_up_to(x + rows.order[there.begin + i] * depth + c, live - c));
    for (int64_t s = 0; s < strips; ++s)
      multiply<A>(
          height, vectors, there.count, grad.data + (s * block + there.begin - first) * height, 1, height, values.data, width,
          sums + s * height * width, width, true);
  }

  void write(int64_t t, const A* sums) const {
    const bool of_a = t < panels_a;
    const int64_t depth = of_a ? in.depth_a : in.depth_v, from = (of_a ? t : t - panels_a) * width, live = std::min(width, depth - from);
    const int64_t wide = in.depth_a + in.depth_v;
    T* to = static_cast<T*>(args.dweight) + (of_a ? from : in.depth_a + from);
    for (int64_t k = 0; k < in.classes; ++k)
      for (int64_t c = 0; c < live; c += lanes) store_up_to(to + k * wide + c, load<A>(sums + k * width + c), live - c);
  }
};

// Sums over all rows, in blocks; those of absent rows count too: the bias is always there.
template <typename T>
inline void concat_linear_bias(const ConcatLinearBwdArgs& args, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int64_t lanes = lanes_of<A>, block = 64;
  const ConcatLinearArgs& in = args.in;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t c = t * lanes, left = in.classes - c;
    V<A> total{};
    for (int64_t first = 0; first < in.rows; first += block) {
      V<A> sum{};
      for (int64_t r = first; r < std::min(first + block, in.rows); ++r)
        sum += load_up_to(static_cast<const T*>(args.grad) + r * in.classes + c, left);
      total += sum;
    }
    store_up_to(static_cast<T*>(args.dbias) + c, total, left);
  }
}

inline void concat_linear_bwd_cpu(const ConcatLinearBwdArgs& args, const Parallel& parallel) {
  with_type(args.in.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const ConcatLinearArgs& in = args.in;
    const PresentRows rows(in.rows, in.mask_a, in.mask_v);
    const int64_t wide = in.depth_a + in.depth_v, tile = concat_tile<A>, work = concat_work(in);
    if (args.da || args.dv) {
      const WidePanels<T> of_a(in.classes, args.da ? in.depth_a : 0), of_v(in.classes, args.dv ? in.depth_v : 0);
      const T* weight = static_cast<const T*>(in.weight);
      for_tasks(parallel, of_a.count + of_v.count, in.classes * wide, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          if (p < of_a.count) of_a.fill(p, weight, wide, 1);
          else of_v.fill(p - of_a.count, weight + in.depth_a, wide, 1);
        }
      });
      for_tasks(parallel, (in.rows + tile - 1) / tile, work, [&](int64_t begin, int64_t end) {
        const ConcatLinearInputs<T> inputs{args, in, rows, of_a, of_v};
        for (int64_t t = begin; t < end; ++t) inputs.run(t * tile);
      });
    }
    if (args.dweight && in.classes) {
      const int64_t panels = (in.depth_a + panel_columns<A> - 1) / panel_columns<A> + (in.depth_v + panel_columns<A> - 1) / panel_columns<A>;
      for_tasks(parallel, panels, work, [&](int64_t begin, int64_t end) {
        ConcatLinearWeight<T>{args, in, rows}.run(begin, end);
      });
    }
    if (args.dbias)
      for_tasks(parallel, (in.classes + lanes_of<A> - 1) / lanes_of<A>, in.rows * in.classes, [&](int64_t begin, int64_t end) {
        concat_linear_bias<T>(args, begin, end);
      });
  });
}
