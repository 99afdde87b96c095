// The two sides of an in-batch loss: rows of features in any layout and type, read a block at a time, and what is known of each
// row before any product.

constexpr int64_t block_rows = kept_block;  // of either side; a block's scores (64 KB) and panels stay in the second-level cache
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

// Reads rows [N, D] of any layout and type a block at a time.
template <typename A>
struct RowReader {
  const Rows& rows;
  const int64_t slices = slices_of<A>(rows.depth);
  const bool in_place = rows.dtype == (std::is_same_v<A, double> ? DType::f64 : DType::f32) && rows.stride_d == 1 &&
                        rows.depth % lanes_of<A> == 0;
  const int64_t height;
  Scratch<A> packed{in_place ? 0 : slices * height * panel_columns<A>, uncleared};

  // One that is `idle` will not be read from.
  explicit RowReader(const Rows& rows, bool idle = false) : rows(rows), height(idle ? 0 : std::min(block_rows, rows.count)) {}

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
    return {packed.data, columns, slice_stride};
  }
};

// Calls f(first, last) for the rows of [begin, end) a task gets, of which each writes its own only.
template <typename F>
inline void for_row_ranges(const Parallel& parallel, int64_t begin, int64_t end, int64_t depth, F&& f) {
  constexpr int64_t grain = 16;
  for_tasks(parallel, (end - begin + grain - 1) / grain, (end - begin) * depth, [&](int64_t from, int64_t to) {
    f(begin + from * grain, std::min(begin + to * grain, end));
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

// One side of a loss. Rows are used as they lie, and products of them are scaled.
template <typename A>
struct Side {
  const Rows& rows;
  const bool normalize, distances;
  // Zero past the last row, as all arrays here.
  Scratch<double> norm{padded_rows(rows.count)};
  Scratch<A> inverse{padded_rows(rows.count)};  // 1 / max(norm, 1e-12), or 1 where rows are used as they are
  Scratch<A> square{distances ? padded_rows(rows.count) : 0};  // squared length of the scaled row

  // Of rows whose lengths are still to be set.
  Side(const Rows& rows, bool normalize, bool distances) : rows(rows), normalize(normalize), distances(distances) {}
  Side(const Rows& rows, bool normalize, bool distances, const Parallel& parallel) : Side(rows, normalize, distances) {
    measure(0, rows.count, parallel);
  }

  void set_length(int64_t row, double length) const {
    norm[row] = length;
    inverse[row] = A(scale(row));
    if (distances) square[row] = A(scaled_square(row));
  }
  void measure(int64_t begin, int64_t end, const Parallel& parallel) const {
    for_row_ranges(parallel, begin, end, rows.depth, [&](int64_t from, int64_t to) {
      const RowReader<A> reader(rows);
      for (int64_t first = from; first < to; first += block_rows) {
        const int64_t count = std::min(block_rows, to - first);
        const Block<A> block = reader.read(first, count);
        for (int64_t r = 0; r < count; ++r)
          set_length(first + r, std::sqrt(sum_over(block.row(r), block.row(r), rows.depth, [](V<double> x, V<double> y) { return x * y; })));
      }
    });
  }

  // What the row, and products with it, are to be multiplied by.
  double scale(int64_t row) const { return normalize ? 1 / std::max(norm[row], minimum_norm) : 1.0; }
  double scaled_square(int64_t row) const { return norm[row] * norm[row] * scale(row) * scale(row); }
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
inline void for_partners(const Side<A>& a, const Side<A>& b, int64_t begin, int64_t end, int64_t offset, F&& f) {
  if (begin >= end) return;
  const RowReader<A> read_a(a.rows), read_b(b.rows);
  for (int64_t first = begin; first < end; first += block_rows) {
    const int64_t count = std::min(block_rows, end - first);
    const Block<A> rows = read_a.read(first, count), others = read_b.read(first + offset, count);
    for (int64_t r = 0; r < count; ++r) f(first + r, rows.row(r), others.row(r));
  }
}

// Distance of two scaled rows from their differences, at least 1e-6.
template <typename A>
inline double distance_of(const Row<A>& x, const Row<A>& y, double scale_x, double scale_y, int64_t depth) {
  const double distance = std::sqrt(sum_over(x, y, depth, [=](V<double> u, V<double> v) {
    const V<double> difference = u * splat<double>(scale_x) - v * splat<double>(scale_y);
    return difference * difference;
  }));
  return distance < minimum_distance ? minimum_distance : distance;
}

// Similarity of each row with its partner, from the two rows alone: the product of the scaled rows.
template <typename A>
inline void partner_similarity(
    const Side<A>& a, const Side<A>& b, int64_t begin, int64_t end, int64_t offset, const Parallel& parallel, double* out) {
  for_row_ranges(parallel, begin, end, a.rows.depth, [&](int64_t from, int64_t to) {
    for_partners(a, b, from, to, offset, [&](int64_t i, const Row<A>& x, const Row<A>& y) {
      out[i] = sum_over(x, y, a.rows.depth, [](V<double> u, V<double> v) { return u * v; }) * a.scale(i) * b.scale(i + offset);
    });
  });
}

// The lengths of both sides' rows and the similarity (distance) of partners, in one read of them all.
template <typename A>
inline void measure_pairs(
    const Side<A>& a, const Side<A>& b, int64_t begin, int64_t end, int64_t offset, const Parallel& parallel, double* out) {
  constexpr int parts = sizeof(double) / sizeof(A);
  const int64_t depth = a.rows.depth, n = a.rows.count, m = b.rows.count;
  a.measure(0, begin, parallel), a.measure(end, n, parallel);
  const int64_t before = std::clamp<int64_t>(begin + offset, 0, m), after = std::clamp<int64_t>(end + offset, 0, m);
  b.measure(0, before, parallel), b.measure(after, m, parallel);
  for_row_ranges(parallel, begin, end, 2 * depth, [&](int64_t from, int64_t to) {
    for_partners(a, b, from, to, offset, [&](int64_t i, const Row<A>& x, const Row<A>& y) {
      V<double> of_a = {}, of_b = {}, both = {}, u[parts], v[parts];
      V<double> rest_a = {}, rest_b = {}, rest = {};
      for (int64_t d = 0; d < depth; d += lanes_of<A>) {
        in_double(x[d], u);
        in_double(y[d], v);
        of_a += u[0] * u[0], of_b += v[0] * v[0], both += u[0] * v[0];
        if constexpr (parts > 1) rest_a += u[1] * u[1], rest_b += v[1] * v[1], rest += u[1] * v[1];
      }
      a.set_length(i, std::sqrt(sum_lanes<double>(of_a + rest_a)));
      b.set_length(i + offset, std::sqrt(sum_lanes<double>(of_b + rest_b)));
      const double scale_x = a.scale(i), scale_y = b.scale(i + offset);
      out[i] = sum_lanes<double>(both + rest) * scale_x * scale_y;
      if (!a.distances) return;
      const double squares = a.scaled_square(i) + b.scaled_square(i + offset), left = squares - 2 * out[i];
      // Where much cancels, or a row is not a number: the differences themselves.
      out[i] = left > squares / 4 ? std::max(std::sqrt(left), minimum_distance) : distance_of(x, y, scale_x, scale_y, depth);
    });
  });
}
