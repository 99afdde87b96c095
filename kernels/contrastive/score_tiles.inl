// The two products around a panel of queries and a block of keys, and the softmax between them.

// St[j][columns] = key j . query column, handed to `use(j, rows, tile)` a register tile at a time.
template <typename U, int NV, typename Use>
inline void score_tiles(const KeyBlock<U>& keys, int64_t count, const U* panel, int64_t depth, Use&& use) {
  using A = Acc<U>;
  constexpr int64_t columns = NV * lanes_of<A>;
  for (int64_t j = 0; j < count; j += gemm_rows<A>) {
    with_rows<gemm_rows<A>>(count - j, [&](auto rows) {
      keys.fetch_ahead(j, rows(), units<U>(depth));
      V<A> tile[rows()][NV] = {};
      gemm_tile<U, rows(), NV>(units<U>(depth), keys.along_d + j * keys.row, keys.row, 1, panel, columns, tile);
      use(j, rows, tile);
    });
  }
}

// out[d][columns] += sum_j key(j, d) * weights[j][columns]
template <typename U, int NV>
inline void add_weighted_keys(
    const KeyBlock<U>& keys, int64_t count, const U* weights, int64_t depth, Acc<U>* out) {
  using A = Acc<U>;
  constexpr int64_t columns = NV * lanes_of<A>;
  for (int64_t d = 0; d < depth; d += gemm_rows<A>) {
    with_rows<gemm_rows<A>>(depth - d, [&](auto rows) {
      for (int64_t at = 0; at < rows() * columns; at += 64 / sizeof(A)) __builtin_prefetch(out + d * columns + at, 1);
      V<A> tile[rows()][NV] = {};  // a block's sum joins the total once: less rounding than adding key by key
      gemm_tile<U, rows(), NV>(units<U>(count), keys.along_k + d, 1, keys.unit, weights, columns, tile);
      A* line = out + d * columns;
      for_tile(tile, [&](int r, int v, V<A>& x) {
        A* at = line + r * columns + v * lanes_of<A>;
        store<A>(at, load<A>(at) + x);
      });
    });
  }
}

// Weights of the rows of one tile, in units along the keys. Rows past the last one of an odd block are zero.
template <typename U, int MR, int NV>
inline void store_weights(U* weights, int64_t j, const V<Acc<U>> (&tile)[MR][NV]) {
  using A = Acc<U>;
  constexpr int64_t columns = NV * lanes_of<A>;
  if constexpr (std::is_same_v<U, bf16x2_t>) {
    static_assert(gemm_rows<A> % 2 == 0);
    typedef uint32_t words __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
#pragma GCC unroll 8
    for (int r = 0; r < MR; r += 2) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        // Round half away: a weight is never negative infinity or NaN unless its row already is.
        const words low = ((words)tile[r][v] + 0x8000u) >> 16;
        words high = {};
        if (r + 1 < MR) high = ((words)tile[r + 1][v] + 0x8000u) & 0xffff0000u;
        const words both = low | high;
        std::memcpy(weights + (j + r) / 2 * columns + v * lanes_of<A>, &both, sizeof both);
      }
    }
  } else {
    for_tile(tile, [&](int r, int v, const V<A>& x) { store<A>(weights + (j + r) * columns + v * lanes_of<A>, x); });
  }
}
