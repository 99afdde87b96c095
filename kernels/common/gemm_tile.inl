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

// Two neighbours along the summed dimension, for the instruction that multiplies and adds both.
struct bf16x2_t {
  uint32_t bits;
};
template <>
struct Accumulate<bf16x2_t> {
  using type = float;
};

template <typename U>
inline V<Acc<U>> multiply_add(V<Acc<U>> sum, U scalar, const U* row) {
  if constexpr (std::is_same_v<U, bf16x2_t>) {
#ifdef AVFAST_BF16_DOT
    return (V<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(scalar.bits)), (__m512bh)_mm512_loadu_si512(row));
#else
    return sum;
#endif
  } else {
    return sum + splat<U>(scalar) * load<U>(row);
  }
}

// Every pair times itself, both products added.
inline V<float> multiply_pairs(V<float> sum, const bf16x2_t* x) {
#ifdef AVFAST_BF16_DOT
  const __m512i pairs = _mm512_loadu_si512(x);
  return (V<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)pairs);
#else
  return sum;
#endif
}

// acc[r][v] += sum_{k < depth} a[r * a_row + k * a_k] * (vector v of row b + k * b_k)
// The scalars are read where they lie, at any stride, so neither keys nor scores are ever transposed; the vectors are rows
// of a panel whose width is a multiple of the register. U is float, double, or a pair of bf16.
template <typename U, int MR, int NV>
[[gnu::always_inline]] inline void gemm_tile(
    int64_t depth, const U* a, int64_t a_row, int64_t a_k, const U* b, int64_t b_k, V<Acc<U>> (&acc)[MR][NV]) {
  for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = multiply_add<U>(acc[r][v], a[r * a_row], b + v * lanes_of<Acc<U>>);
    }
    a += a_k;
    b += b_k;
  }
}

// f(r, v, element) for every register of a tile, unrolled so that the tile stays in registers.
template <typename W, int MR, int NV, typename F>
[[gnu::always_inline]] inline void for_tile(W (&tile)[MR][NV], F&& f) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) f(r, v, tile[r][v]);
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
