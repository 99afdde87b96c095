// A strided matrix of any element type becomes a dense one of the wide type. Included after simd.inl, once per instruction set.

// Which lanes of (a, b) make the upper or the lower row of a pair `step` apart, when the bit `step` of row and lane changes places.
template <typename A, int STEP, bool UPPER>
inline M<A> exchange_lanes() {
  constexpr int lanes = lanes_of<A>;
  M<A> from{};
#pragma GCC unroll 16
  for (int l = 0; l < lanes; ++l) {
    const bool moved = (l & STEP) != 0;
    from[l] = UPPER ? (moved ? lanes + l - STEP : l) : (moved ? lanes + l : l + STEP);
  }
  return from;
}

// Lane l of row r and lane r of row l change places.
template <typename A, int STEP = 1>
inline void transpose(V<A> (&t)[lanes_of<A>]) {
  constexpr int lanes = lanes_of<A>;
#pragma GCC unroll 16
  for (int r = 0; r < lanes; ++r) {
    if (r & STEP) continue;
    const V<A> a = t[r], b = t[r + STEP];
    t[r] = __builtin_shuffle(a, b, exchange_lanes<A, STEP, true>());
    t[r + STEP] = __builtin_shuffle(a, b, exchange_lanes<A, STEP, false>());
  }
  if constexpr (2 * STEP < lanes) transpose<A, 2 * STEP>(t);
}

template <typename T>
inline V<Acc<T>> load_up_to(const T* p, int64_t n) {
  return n >= lanes_of<Acc<T>> ? load(p) : load_part(p, n, Acc<T>(0));
}

template <typename T>
inline void store_up_to(T* p, V<Acc<T>> v, int64_t n) {
  n >= lanes_of<Acc<T>> ? store(p, v) : store_part(p, v, n);
}

// out[k][columns] = x[k * stride_k + c * stride_c] for k < rows, with zeros from c = live on. `columns` is a multiple of the lanes.
template <typename T>
inline void pack(
    const T* x, int64_t rows, int64_t live, int64_t columns, int64_t stride_k, int64_t stride_c, Acc<T>* out) {
  using A = Acc<T>;
  constexpr int64_t lanes = lanes_of<A>;
  if (stride_c == 1) {
    for (int64_t k = 0; k < rows; ++k, x += stride_k, out += columns) {
      int64_t c = 0;
      for (; c < live; c += lanes) store<A>(out + c, load_up_to(x + c, live - c));
      for (; c < columns; c += lanes) store<A>(out + c, V<A>{});
    }
  } else if (stride_k == 1) {
    for (int64_t c = 0; c < columns; c += lanes) {
      for (int64_t k = 0; k < rows; k += lanes) {
        V<A> tile[lanes];
#pragma GCC unroll 16
        for (int r = 0; r < lanes; ++r)
          tile[r] = c + r < live ? load_up_to(x + (c + r) * stride_c + k, rows - k) : V<A>{};
        transpose<A>(tile);
        const int64_t full = std::min(lanes, rows - k);
#pragma GCC unroll 16
        for (int r = 0; r < lanes; ++r)
          if (r < full) store<A>(out + (k + r) * columns + c, tile[r]);
      }
    }
  } else {
    for (int64_t k = 0; k < rows; ++k, x += stride_k, out += columns) {
      for (int64_t c = 0; c < live; ++c) out[c] = A(to_float(x[c * stride_c]));
      std::fill(out + live, out + columns, A(0));
    }
  }
}
