// The products of an in-batch loss: logits of a block of rows of a against a block of rows of b, and what weights of that shape
// add to the rows of either side.

// Logits lie transposed, [row of b][row of a], so that sums over either side are sums of whole registers. The stride keeps the
// columns of the second product out of one set of the cache.
template <typename A>
constexpr int64_t logit_stride = block_rows + lanes_of<A>;

// A logit that counts for nothing: 2^hole is 0, and 0 * hole is not NaN.
constexpr double hole = -1e30;

// (a.b) times the factors of both rows, + offset
template <typename A>
struct ProductLogit {
  const A *a, *a_rest, *b, *b_rest;
  A offset;

  ProductLogit(const Factors<A>& a, const Factors<A>& b, double offset)
      : a(a.value.data), a_rest(a.rest.data), b(b.value.data), b_rest(b.rest.data), offset(A(offset)) {}

  V<A> operator()(V<A> product, int64_t i, int64_t j) const {
    const V<A> t = product * (load<A>(a + i) * splat<A>(b[j]));
    return t * (load<A>(a_rest + i) + splat<A>(b_rest[j])) + t + splat<A>(offset);
  }
};

// -factor max(|a - b|, 1e-6), with |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
template <typename A>
struct DistanceLogit {
  const A *a_square, *b_square;
  A factor;

  V<A> operator()(V<A> product, int64_t i, int64_t j) const {
    constexpr A least = A(minimum_distance * minimum_distance);
    const V<A> squares = load<A>(a_square + i) + splat<A>(b_square[j]) - product * splat<A>(A(2));
    return sqrt_v<A>(select<A>(squares < splat<A>(least), splat<A>(least), squares)) * splat<A>(-factor);
  }
};

// Diagonals of the logits that are left out: entries (i, i + offset).
struct Holes {
  int64_t offset[3];
  int count;
};

// A block of logits; `i` and `j` are its first rows of a and b.
template <typename A>
struct LogitBlock {
  A* data;
  int64_t i, rows, j, count;  // rows of a, rows of b

  int64_t columns() const { return (rows + panel_columns<A> - 1) / panel_columns<A> * panel_columns<A>; }
  A* line(int64_t r) const { return data + r * logit_stride<A>; }

  void leave_out(const Holes& holes) const {
    for (int h = 0; h < holes.count; ++h) {
      const int64_t offset = holes.offset[h];
      for (int64_t at = std::max(i, j - offset); at < std::min(i + rows, j + count - offset); ++at)
        line(at + offset - j)[at - i] = A(hole);
    }
    if (rows == columns()) return;
    for (int64_t r = 0; r < count; ++r) std::fill(line(r) + rows, line(r) + columns(), A(hole));
  }
};

// out[r][d] += sum_k weights[r * row + k * step] * x[k][d]
template <typename A>
inline void add_product(
    int64_t rows, int64_t count, const A* weights, int64_t row, int64_t step, const Block<A>& x, int64_t depth, A* out) {
  constexpr int64_t lanes = lanes_of<A>, columns = panel_columns<A>;
  for (int64_t s = 0; s < slices_of<A>(depth); ++s) {
    const int64_t left = depth - s * columns;
    with_width<A>((left + lanes - 1) / lanes, [&](auto vectors) {
      for (int64_t r = 0; r < rows; r += gemm_rows<A>) {
        with_rows<gemm_rows<A>>(rows - r, [&](auto height) {
          V<A> tile[height()][vectors()] = {};
          A* to = out + r * depth + s * columns;
          // What is added to is on its way while the sums are made.
          for_tile(tile, [&](int h, int v, const V<A>&) { __builtin_prefetch(to + h * depth + v * lanes, 1); });
          gemm_tile<A, height(), vectors()>(count, weights + r * row, row, step, x.slice(s), x.row_stride, tile);
          for_tile(tile, [&](int h, int v, const V<A>& sum) {
            A* at = to + h * depth + v * lanes;
            if (vectors() * lanes <= left) store<A>(at, load<A>(at) + sum);
            else store_up_to<A>(at, load_up_to(at, left - v * lanes) + sum, left - v * lanes);
          });
        });
      }
    });
  }
}

// Working memory of one task.
template <typename A>
struct Tiles {
  static constexpr int64_t columns = panel_columns<A>, lanes = lanes_of<A>;
  const int64_t depth, slices;
  const RowReader<A> read_a, read_b;
  const int64_t height;
  Scratch<A> panels{height * slices * columns};  // rows of a, transposed: [panel][d][columns]
  Scratch<A> logits{block_rows * logit_stride<A>};
  Block<A> a{}, b{};
  LogitBlock<A> block{};

  Tiles(const Side<A>& a, const Side<A>& b)
      : depth(a.rows.depth),
        slices(slices_of<A>(depth)),
        read_a(a.reader()),
        read_b(b.reader()),
        height(std::min(block_rows, (a.rows.count + columns - 1) / columns * columns)) {}

  A* panel(int64_t first_row) const { return panels.data + first_row * slices * columns; }

  // Rows of a that the next logits are of. Zeros where a panel ends past the last one.
  void take(int64_t first, int64_t rows) {
    a = read_a.read(first, rows);
    block = {logits.data, first, rows, 0, 0};
    for (int64_t p = 0; p < block.columns(); p += columns)
      for (int64_t s = 0; s < slices; ++s)
        pack(a.slice(s) + p * a.row_stride, std::min(columns, depth - s * columns), std::min(columns, rows - p), columns, 1, a.row_stride,
             panel(p) + s * columns * columns);
  }

  template <typename Logit>
  const LogitBlock<A>& against(int64_t first, int64_t count, const Logit& logit, const Holes& holes) {
    constexpr int NV = gemm_vectors<A>;
    b = read_b.read(first, count);
    block.j = first, block.count = count;
    for (int64_t p = 0; p < block.columns(); p += columns) {
      for (int64_t j = 0; j < count; j += gemm_rows<A>) {
        with_rows<gemm_rows<A>>(count - j, [&](auto height) {
          V<A> tile[height()][NV] = {};
          for (int64_t s = 0; s < slices; ++s)
            gemm_tile<A, height(), NV>(
                std::min(columns, depth - s * columns), b.slice(s) + j * b.row_stride, b.row_stride, 1, panel(p) + s * columns * columns,
                columns, tile);
          for_tile(tile, [&](int r, int v, const V<A>& product) {
            store<A>(block.line(j + r) + p + v * lanes, logit(product, block.i + p + v * lanes, first + j + r));
          });
        });
      }
    }
    block.leave_out(holes);
    return block;
  }

  // The block's weights, which took the place of its logits, times the rows of b, added to the rows of a; and the other way.
  void add_to_a(A* out) const {
    add_product<A>(block.rows, block.count, block.data, 1, logit_stride<A>, b, depth, out + block.i * depth);
  }
  void add_to_b(A* out) const {
    add_product<A>(block.count, block.rows, block.data, logit_stride<A>, 1, a, depth, out + block.j * depth);
  }
};
