// Blocks of logits of an in-batch loss, of rows of a against rows of b, and the product that weights of that shape are for.

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

// -factor max(|a - b|, 1e-6), with |a - b|^2 = |a|^2 + |b|^2 - 2 a.b of scaled rows; `product` gives -2 a.b.
template <typename A>
struct DistanceLogit {
  const ProductLogit<A> product;
  const A *a_square, *b_square;
  A factor;

  V<A> operator()(V<A> of_rows, int64_t i, int64_t j) const {
    constexpr A least = A(minimum_distance * minimum_distance);
    const V<A> squares = load<A>(a_square + i) + splat<A>(b_square[j]) + product(of_rows, i, j);
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
  int64_t stride = logit_stride<A>;

  int64_t columns() const { return (rows + panel_columns<A> - 1) / panel_columns<A> * panel_columns<A>; }
  A* line(int64_t r) const { return data + r * stride; }

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

// out[r][d] += sum_k weights[r * row + k * step] * x[k][d], k in units of U, for the d of one slice of x
template <typename U>
inline void add_slice(
    int64_t rows, int64_t count, const U* weights, int64_t row, int64_t step, const U* x, int64_t x_row, int64_t slice, int64_t depth,
    Acc<U>* out) {
  using A = Acc<U>;
  constexpr int64_t lanes = lanes_of<A>, columns = panel_columns<A>;
  const int64_t left = depth - slice * columns;
  with_width<A>((left + lanes - 1) / lanes, [&](auto vectors) {
    for (int64_t r = 0; r < rows; r += gemm_rows<A>) {
      with_rows<gemm_rows<A>>(rows - r, [&](auto height) {
        V<A> tile[height()][vectors()] = {};
        A* to = out + r * depth + slice * columns;
        // What is added to is on its way while the sums are made.
        for_tile(tile, [&](int h, int v, const V<A>&) { __builtin_prefetch(to + h * depth + v * lanes, 1); });
        gemm_tile<U, height(), vectors()>(count, weights + r * row, row, step, x, x_row, tile);
        for_tile(tile, [&](int h, int v, const V<A>& sum) {
          A* at = to + h * depth + v * lanes;
          if (vectors() * lanes <= left) store<A>(at, load<A>(at) + sum);
          else store_up_to<A>(at, load_up_to(at, left - v * lanes) + sum, left - v * lanes);
        });
      });
    }
  });
}

// The same for all slices.
template <typename U>
inline void add_product(
    int64_t rows, int64_t count, const U* weights, int64_t row, int64_t step, const Block<U>& x, int64_t depth, Acc<U>* out) {
  for (int64_t s = 0; s < slices_of<Acc<U>>(depth); ++s)
    add_slice<U>(rows, count, weights, row, step, x.slice(s), x.row_stride, s, depth, out);
}
