// Products of matrices whose rows are scalars where they lie. Included after gemm_tile.inl, once per instruction set.

// Rows of scalars per tile of NV vectors: with the loads, what the registers hold.
template <int NV>
constexpr int tile_rows = AVFAST_VECTOR_BYTES == 64 && NV <= 2 ? 9 : 6;

// out[rows][NV vectors], beginning `stride` apart, becomes sum_{k < depth} a[r * a_row + k * a_k] * b[k * b_k + ...], or grows by it.
// Tiles are of like height: a last one of a single row would wait for its own sums.
template <typename A, int NV>
[[gnu::noinline]] inline void multiply_columns(
    int64_t rows, int64_t depth, const A* a, int64_t a_row, int64_t a_k, const A* b, int64_t b_k, A* out, int64_t stride, bool add) {
  constexpr int most = tile_rows<NV>;
  const int64_t parts = (rows + most - 1) / most;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t height = (rows + parts - part - 1) / (parts - part);
    with_rows<most>(height, [&](auto n) {
      V<A> tile[n()][NV] = {};
      gemm_tile<A, n(), NV>(depth, a, a_row, a_k, b, b_k, tile);
      if (add) for_tile(tile, [&](int r, int v, V<A>& x) { x += load<A>(out + r * stride + v * lanes_of<A>); });
      for_tile(tile, [&](int r, int v, const V<A>& x) { store<A>(out + r * stride + v * lanes_of<A>, x); });
    });
    rows -= height, a += height * a_row, out += height * stride;
  }
}

template <typename A>
inline void multiply(
    int64_t rows, int64_t vectors, int64_t depth, const A* a, int64_t a_row, int64_t a_k, const A* b, int64_t b_k, A* out,
    int64_t stride, bool add) {
  constexpr int widest = gemm_vectors<A>;
  while (vectors > 0) {
    with_rows<widest>(vectors, [&](auto n) {
      multiply_columns<A, n()>(rows, depth, a, a_row, a_k, b, b_k, out, stride, add);
      vectors -= n(), b += n() * lanes_of<A>, out += n() * lanes_of<A>;
    });
  }
}
