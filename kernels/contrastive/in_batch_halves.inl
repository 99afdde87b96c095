// The products of bfloat16 rows by the instruction that multiplies and adds pairs, at twice the speed: pairs along d for the logits,
// pairs of rows for what weights add to them. Weights are rounded to bfloat16, sums are float.

template <typename A>
struct Halves {  // none for this type or instruction set
  static constexpr bool possible = false, used = false;
  Halves(const Side<A>&, const Side<A>&) {}
};

#ifdef AVFAST_BF16_DOT
template <>
struct Halves<float> {
  using A = float;
  using U = bf16x2_t;
  static constexpr bool possible = true;
  static constexpr int64_t columns = panel_columns<A>, lanes = lanes_of<A>, half_block = block_rows / 2;
  const bool used;  // gradients of distances are differences of what weights add up and of their sum: rounded, they would cancel
  const int64_t depth, width;  // in elements, in pairs
  KeyReader<U> read_a, read_b;
  Scratch<U> panels{width * block_rows, uncleared};  // rows of a, transposed: [panel][pair along d][columns]
  // Rounded weights in pairs of rows of b, [pair][row of a], and of rows of a, [row of b][pair].
  Scratch<U> by_b{used ? half_block * block_rows : 0, uncleared}, by_a{used ? block_rows * half_block : 0, uncleared};
  KeyBlock<U> a{}, b{};

  Halves(const Side<A>& a, const Side<A>& b)
      : used(a.rows.dtype == DType::bf16 && !a.distances),
        depth(used ? a.rows.depth : 0),
        width(units<U>(depth)),
        read_a(as_keys(a.rows), depth),
        read_b(as_keys(b.rows), depth) {}

  static Queue as_keys(const Rows& rows) { return {rows.data, rows.dtype, rows.count, rows.stride_n, rows.stride_d}; }

  void take(int64_t first, int64_t rows, int64_t padded) {
    a = read_a.read(first, rows);
    // Moved as floats: no bit of them is looked at.
    for (int64_t p = 0; p < padded; p += columns)
      pack(reinterpret_cast<const A*>(a.along_d + p * a.row), width, std::min(columns, rows - p), columns, 1, a.row,
           reinterpret_cast<A*>(panels.data + p * width));
  }

  template <typename Logit>
  void against(const LogitBlock<A>& block, const Logit& logit) {
    constexpr int NV = gemm_vectors<A>;
    b = read_b.read(block.j, block.count);
    for (int64_t p = 0; p < block.columns(); p += columns) {
      for (int64_t j = 0; j < block.count; j += gemm_rows<A>) {
        with_rows<gemm_rows<A>>(block.count - j, [&](auto height) {
          V<A> tile[height()][NV] = {};
          gemm_tile<U, height(), NV>(width, b.along_d + j * b.row, b.row, 1, panels.data + p * width, columns, tile);
          for_tile(tile, [&](int r, int v, const V<A>& product) {
            store<A>(block.line(j + r) + p + v * lanes, logit(product, block.i + p + v * lanes, block.j + j + r));
          });
        });
      }
    }
  }

  void round(const LogitBlock<A>& block) {
    typedef uint32_t words __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
    // Half away from zero; what is added to a NaN leaves it one.
    auto rounded = [](V<A> w) { return (words)w + 0x8000u; };
    for (int64_t j = 0; j < block.count; j += 2) {
      for (int64_t c = 0; c < block.columns(); c += lanes) {
        const words low = rounded(load<A>(block.line(j) + c));
        words high = {};
        if (j + 1 < block.count) high = rounded(load<A>(block.line(j + 1) + c));
        const words both = low >> 16 | (high & 0xffff0000u);
        std::memcpy(by_b.data + j / 2 * block_rows + c, &both, sizeof both);
        for (int64_t r = j; r < std::min(j + 2, block.count); ++r) {
          const __m256i half = _mm512_cvtepi32_epi16((__m512i)((r == j ? low : high) >> 16));
          std::memcpy(by_a.data + r * half_block + c / 2, &half, sizeof half);
        }
      }
    }
  }

  void add_to_a(const LogitBlock<A>& block, A* out) const {
    const Block<U> rows{b.along_k, b.unit, columns};
    add_product<U>(block.rows, units<U>(block.count), by_b.data, 1, block_rows, rows, depth, out);
  }
  void add_to_b(const LogitBlock<A>& block, A* out) const {
    const Block<U> rows{a.along_k, a.unit, columns};
    add_product<U>(block.count, units<U>(block.rows), by_a.data, half_block, 1, rows, depth, out);
  }
};
#endif
