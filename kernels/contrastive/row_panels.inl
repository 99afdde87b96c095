// Rows of features cut into panels one register tile wide, and packed transposed: [D][columns], zeros past the last row.

// Panels as equal as whole registers allow, narrow ones first, so that a split into two halves is even.
template <typename A>
struct RowPanels {
  int64_t rows, vectors, count;

  explicit RowPanels(int64_t rows)
      : rows(rows),
        vectors((rows + lanes_of<A> - 1) / lanes_of<A>),
        count((vectors + gemm_vectors<A> - 1) / gemm_vectors<A>) {}

  int64_t narrow() const { return count - vectors % count; }
  int64_t width(int64_t p) const { return vectors / count + (p >= narrow()); }  // in registers
  int64_t columns(int64_t p) const { return width(p) * lanes_of<A>; }
  int64_t first(int64_t p) const { return (p * (vectors / count) + std::max<int64_t>(p - narrow(), 0)) * lanes_of<A>; }
  int64_t live(int64_t p) const { return std::min(columns(p), rows - first(p)); }  // columns that are rows
  int64_t padded() const { return vectors * lanes_of<A>; }
};

// Calls f with the width of a panel as a constant.
template <typename A, int NV = gemm_vectors<A>, typename F>
inline void with_width(int64_t width, F&& f) {
  if constexpr (NV > 1) {
    if (width < NV) return with_width<A, NV - 1>(width, f);
  }
  f(std::integral_constant<int, NV>{});
}

// Element offsets of `live` rows from `first` on, of features [B, D, S].
inline void row_offsets(const FeatureMap& x, int64_t first, int64_t live, int64_t* offsets) {
  for (int64_t c = 0; c < live; ++c) {
    const int64_t b = (first + c) / x.positions, s = (first + c) % x.positions;
    offsets[c] = b * x.stride_b + s * x.stride_s;
  }
}

// What the inner products read: the wide type itself, or bf16 in pairs along the summed dimension.
template <typename U>
constexpr int64_t elements_of = 1;
template <>
constexpr int64_t elements_of<bf16x2_t> = 2;
template <typename U>
inline int64_t units(int64_t elements) {
  return (elements + elements_of<U> - 1) / elements_of<U>;
}

template <typename T>
inline uint32_t bf16_bits(T x) {
  if constexpr (std::is_same_v<T, bf16_t>) {
    return x.bits;
  } else {
    return from_float<bf16_t>(float(to_float(x))).bits;
  }
}

// One unit from elements 2u and 2u + 1 (or u) of a row.
template <typename U, typename T>
inline U unit_of(const T* x, int64_t stride, int64_t u, int64_t depth) {
  if constexpr (std::is_same_v<U, bf16x2_t>) {
    const uint32_t low = bf16_bits(x[2 * u * stride]);
    const uint32_t high = 2 * u + 1 < depth ? bf16_bits(x[(2 * u + 1) * stride]) : 0u;
    return {low | high << 16};
  } else {
    return U(to_float(x[u * stride]));
  }
}

// Element p of two rows of bf16 as one unit, for p < n; a missing odd row (null) is zero.
inline void pair_up(const void* even_row, const void* odd_row, int64_t stride, int64_t n, bf16x2_t* out) {
  typedef uint16_t __attribute__((may_alias)) half;
  const half* even = static_cast<const half*>(even_row);
  const half* odd = static_cast<const half*>(odd_row ? odd_row : even_row);
  const uint32_t keep = odd_row ? 0xffff0000u : 0u;
  if (stride == 1) {
    for (int64_t p = 0; p < n; ++p) out[p].bits = even[p] | (uint32_t(odd[p]) << 16 & keep);
  } else {
    for (int64_t p = 0; p < n; ++p) out[p].bits = even[p * stride] | (uint32_t(odd[p * stride]) << 16 & keep);
  }
}

// out [units of D][columns] from the rows at `offsets`.
template <typename U, typename T>
inline void pack_panel(const T* x, const int64_t* offsets, int64_t live, int64_t columns, int64_t depth, int64_t stride_d, U* out) {
  for (int64_t u = 0; u < units<U>(depth); ++u, out += columns) {
    for (int64_t c = 0; c < live; ++c) out[c] = unit_of<U>(x + offsets[c], stride_d, u, depth);
    for (int64_t c = live; c < columns; ++c) out[c] = U{};
  }
}

// Squared length of each packed row.
template <typename U>
inline void panel_squares(const U* panel, int64_t columns, int64_t depth, double* squares) {
  std::fill_n(squares, columns, 0.0);
  for (int64_t u = 0; u < units<U>(depth); ++u, panel += columns) {
    for (int64_t c = 0; c < columns; ++c) {
      if constexpr (std::is_same_v<U, bf16x2_t>) {
        const double low = std::bit_cast<float>(panel[c].bits << 16), high = std::bit_cast<float>(panel[c].bits & 0xffff0000u);
        squares[c] += low * low + high * high;
      } else {
        squares[c] += double(panel[c]) * double(panel[c]);
      }
    }
  }
}

// What F.normalize multiplies a row by.
inline double inverse_length(double squares) {
  return 1.0 / std::max(std::sqrt(squares), 1e-12);
}
