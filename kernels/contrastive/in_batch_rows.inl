// The two sides of an in-batch loss: rows of features in any layout and type, read a block at a time, and what is known of each
// row before any product.

constexpr int64_t block_rows = 128;  // of either side; a block's scores (64 KB) and panels stay in the second-level cache
constexpr double minimum_norm = 1e-12;      // as F.normalize
constexpr double minimum_distance = 1e-6;   // a shorter one has no gradient

inline int64_t blocks_of(int64_t rows) {
  return (rows + block_rows - 1) / block_rows;
}
inline int64_t padded_rows(int64_t rows) {
  return blocks_of(rows) * block_rows;
}

template <typename A>
inline int64_t slices_of(int64_t depth) {
  return (depth + panel_columns<A> - 1) / panel_columns<A>;
}

// A row of the wide type, in slices of a panel's width.
template <typename A>
struct Row {
  const A* data;
  int64_t slice_stride;

  // From element d on, which is a multiple of the lanes: one register.
  V<A> operator[](int64_t d) const {
    return load<A>(data + d / panel_columns<A> * slice_stride + d % panel_columns<A>);
  }
};

// Rows of one block. Where they lie in memory as they should, slices are neighbours; packed ones have what a product runs over
// together, [slice][row][panel_columns], whatever the distance of two rows was, with zeros past the last element.
template <typename A>
struct Block {
  const A* data;
  int64_t row_stride, slice_stride;

  const A* slice(int64_t s) const { return data + s * slice_stride; }
  Row<A> row(int64_t r) const { return {data + r * row_stride, slice_stride}; }
};

// Reads rows [N, D] of any layout and type a block at a time; with `scale`, each multiplied by its own.
template <typename A>
struct RowReader {
  const Rows& rows;
  const A* scale;
  const int64_t slices = slices_of<A>(rows.depth);
  const bool in_place = rows.dtype == (std::is_same_v<A, double> ? DType::f64 : DType::f32) && rows.stride_d == 1 &&
                        rows.depth % lanes_of<A> == 0 && !scale;
  const int64_t height;
  Scratch<A> packed{in_place ? 0 : slices * height * panel_columns<A>, uncleared};

  // One that is `idle` will not be read from.
  RowReader(const Rows& rows, const A* scale, bool idle = false)
      : rows(rows), scale(scale), height(idle ? 0 : std::min(block_rows, rows.count)) {}

  // Rows [begin, begin + count), count <= block_rows. Valid until the next read.
  Block<A> read(int64_t begin, int64_t count) const {
    constexpr int64_t columns = panel_columns<A>;
    const int64_t slice_stride = height * columns;
    if (in_place) return {static_cast<const A*>(rows.data) + begin * rows.stride_n, rows.stride_n, columns};
    with_type(rows.dtype, [&](auto type) {
      using T = decltype(type);
      if constexpr (std::is_same_v<Acc<T>, A>) {
        const T* from = static_cast<const T*>(rows.data) + begin * rows.stride_n;
        for (int64_t s = 0; s < slices; ++s)
          pack(from + s * columns * rows.stride_d, count, std::min(columns, rows.depth - s * columns), columns, rows.stride_n,
               rows.stride_d, packed.data + s * slice_stride);
      }
    });
    for (int64_t s = 0; scale && s < slices; ++s)
      for (int64_t at = 0; at < count * columns; at += lanes_of<A>) {
        A* x = packed.data + s * slice_stride + at;
        store<A>(x, load<A>(x) * splat<A>(scale[begin + at / columns]));
      }
    return {packed.data, columns, slice_stride};
  }
};

// Calls f(first, count) for the blocks of [begin, end) a task gets. Each writes rows of its own only.
template <typename F>
inline void for_row_blocks(const Parallel& parallel, int64_t begin, int64_t end, int64_t depth, F&& f) {
  for_tasks(parallel, blocks_of(end - begin), (end - begin) * depth, [&](int64_t from, int64_t to) {
    f(begin + from * block_rows, std::min(begin + to * block_rows, end));
  });
}

inline void in_double(V<double> x, V<double> (&out)[1]) {
  out[0] = x;
}
inline void in_double(V<float> x, V<double> (&out)[2]) {
  typedef float half __attribute__((vector_size(AVFAST_VECTOR_BYTES / 2)));
  half parts[2];
  std::memcpy(parts, &x, sizeof x);
  for (int i = 0; i < 2; ++i) out[i] = __builtin_convertvector(parts[i], V<double>);
}

// Sum over d of f(x[d], y[d]) in double: of these numbers all logits of a row are made, and all would have their error.
template <typename A, typename F>
inline double sum_over(const Row<A>& x, const Row<A>& y, int64_t depth, F&& f) {
  constexpr int parts = sizeof(double) / sizeof(A);
  V<double> sum[parts] = {}, u[parts], v[parts];
  for (int64_t d = 0; d < depth; d += lanes_of<A>) {
    in_double(x[d], u);
    in_double(y[d], v);
    for (int i = 0; i < parts; ++i) sum[i] += f(u[i], v[i]);
  }
  for (int i = 1; i < parts; ++i) sum[0] += sum[i];
  return sum_lanes<double>(sum[0]);
}

// One side of a loss. For cosines rows are used as they lie and the product is scaled; for distances they are scaled when read, so
// that lengths and products are of the same numbers.
template <typename A>
struct Side {
  const Rows& rows;
  const bool normalize, distances;
  // Zero past the last row, as all arrays here.
  Scratch<double> norm{padded_rows(rows.count)};
  Scratch<A> inverse{padded_rows(rows.count)};  // 1 / max(norm, 1e-12), or 1 where rows are used as they are
  Scratch<A> square{distances ? padded_rows(rows.count) : 0};  // squared length of the row as it is read

  Side(const Rows& rows, bool normalize, bool distances, const Parallel& parallel)
      : rows(rows), normalize(normalize), distances(distances) {
    for_row_blocks(parallel, 0, rows.count, rows.depth, [&](int64_t begin, int64_t end) {
      const RowReader<A> raw(rows, nullptr), used = reader();
      for (int64_t first = begin; first < end; first += block_rows) {
        const int64_t count = std::min(block_rows, end - first);
        const Block<A> block = raw.read(first, count);
        for (int64_t r = 0; r < count; ++r) {
          const double squares = sum_over(block.row(r), block.row(r), rows.depth, [](V<double> x, V<double> y) { return x * y; });
          norm[first + r] = std::sqrt(squares);
          inverse[first + r] = A(inverse_norm(first + r));
        }
        if (!distances) continue;
        const Block<A> read = used.read(first, count);
        for (int64_t r = 0; r < count; ++r)
          square[first + r] = A(sum_over(read.row(r), read.row(r), rows.depth, [](V<double> x, V<double> y) { return x * y; }));
      }
    });
  }

  RowReader<A> reader(bool idle = false) const {
    return RowReader<A>(rows, distances && normalize ? inverse.data : nullptr, idle);
  }
  double inverse_norm(int64_t row) const { return normalize ? 1 / std::max(norm[row], minimum_norm) : 1.0; }
  // What products with the row, as it is read, are still to be multiplied by.
  double scale(int64_t row) const { return distances ? 1.0 : inverse_norm(row); }
  // Whether the length of the row was divided out: a shorter one was only scaled.
  bool projected(int64_t row) const { return normalize && norm[row] > minimum_norm; }
};

// Factors of the rows of a side, rounded, and what rounding took from each as a share of it: left alone, that would be the same
// error in all logits of a row.
template <typename A>
struct Factors {
  Scratch<A> value, rest;

  Factors(const Side<A>& side, double factor) : value(padded_rows(side.rows.count)), rest(padded_rows(side.rows.count)) {
    for (int64_t i = 0; i < side.rows.count; ++i) {
      const double exact = side.scale(i) * factor;
      value[i] = A(exact);
      rest[i] = A(exact / double(value[i]) - 1);
    }
  }
};

// f(i, row of a, row of b) for i in [begin, end), where the partner of row i of a is row i + offset of b.
template <typename A, typename F>
inline void for_partners(const Side<A>& a, const Side<A>& b, int64_t begin, int64_t end, int64_t offset, const Parallel& parallel, F&& f) {
  for_row_blocks(parallel, begin, end, a.rows.depth, [&](int64_t from, int64_t to) {
    const RowReader<A> read_a = a.reader(), read_b = b.reader();
    for (int64_t first = from; first < to; first += block_rows) {
      const int64_t count = std::min(block_rows, to - first);
      const Block<A> rows = read_a.read(first, count), others = read_b.read(first + offset, count);
      for (int64_t r = 0; r < count; ++r) f(first + r, rows.row(r), others.row(r));
    }
  });
}

// Similarity of each row with its partner, from the two rows alone: the product as it is used, or the distance from the
// differences, at least 1e-6.
template <typename A>
inline void partner_similarity(
    const Side<A>& a, const Side<A>& b, int64_t begin, int64_t end, int64_t offset, const Parallel& parallel, double* out) {
  for_partners(a, b, begin, end, offset, parallel, [&](int64_t i, const Row<A>& x, const Row<A>& y) {
    if (a.distances) {
      const double distance = std::sqrt(sum_over(x, y, a.rows.depth, [](V<double> u, V<double> v) { return (u - v) * (u - v); }));
      out[i] = distance < minimum_distance ? minimum_distance : distance;
    } else {
      out[i] = sum_over(x, y, a.rows.depth, [](V<double> u, V<double> v) { return u * v; }) * a.scale(i) * b.scale(i + offset);
    }
  });
}
