// The one product loop of every dense kernel: a tile of MR rows of scalars times NV vectors, all of it in registers.
// Included after simd.inl, once per instruction set.

// Rows and vectors of the widest tile: MR * NV sums, NV loads and one broadcast fill 32 (16) registers.
template <typename A>
constexpr int gemm_vectors = AVFAST_VECTOR_BYTES == 64 ? 4 : 2;
template <typename A>
constexpr int gemm_rows = 6;
// Columns of a packed panel.
template <typename A>
constexpr int64_t panel_columns = gemm_vectors<A> * lanes_of<A>;

// acc[r][v] += sum_{k < depth} a[r * a_row + k * a_k] * (vector v of row b + k * b_k)
// The scalars are read where they lie, at any stride, so neither keys nor scores are ever transposed; the vectors are rows
// of a panel whose width is a multiple of the register.
template <typename A, int MR, int NV>
[[gnu::always_inline]] inline void gemm_tile(
    int64_t depth, const A* a, int64_t a_row, int64_t a_k, const A* b, int64_t b_k, V<A> (&acc)[MR][NV]) {
  for (int64_t k = 0; k < depth; ++k) {
    V<A> row[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) row[v] = load<A>(b + v * lanes_of<A>);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const V<A> scalar = splat<A>(a[r * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] += scalar * row[v];
    }
    a += a_k;
    b += b_k;
  }
}

// Calls f with the number of rows at hand as a constant: std::integral_constant<int, 1..MR>.
template <int MR, typename F>
inline void with_rows(int64_t rows, F&& f) {
  if constexpr (MR > 1) {
    if (rows < MR) return with_rows<MR - 1>(rows, f);
  }
  f(std::integral_constant<int, MR>{});
}
