// The products of an in-batch loss whose logits are small enough to be kept: made once, in the forward pass, and read in the backward
// pass. With all of them at hand, rows are packed once for everybody, a block's shape follows the number of rows, and a row of the
// gradient is finished where it was summed.

// A number for each pair of rows, in blocks: [block of b][block of a][row of b][row of a], a line of which is `line` long.
template <typename A>
struct KeptBlocks {
  A* data;
  int64_t blocks_a, line;

  // The part of one block that is of rows i to i + rows of a and j to j + count of b.
  LogitBlock<A> block(int64_t i, int64_t rows, int64_t j, int64_t count) const {
    A* from = data + (j / block_rows * blocks_a + i / block_rows) * block_rows * line;
    return {from + j % block_rows * line + i % block_rows, i, rows, j, count, line};
  }

  // Holes where there are no rows: from the width of a register tile on, and under the last row of b.
  void fill_rest(const LogitBlock<A>& block, bool last) const {
    const int64_t columns = block.columns(), rows = last ? block_rows - block.j % block_rows : block.count;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = r < block.count ? columns : 0;
      std::fill(block.line(r) + from, block.line(r) + line, A(hole));
    }
  }
};

// Rows cut into tasks that each lie in one block, for eight threads where there are few: whole register tiles, but a whole block where
// that would leave a short rest.
struct KeptCuts {
  int64_t rows, height;

  KeptCuts(int64_t rows, int64_t tasks, int64_t least) : rows(rows) {
    constexpr int64_t tile = 6;
    height = std::max((rows + tasks * tile - 1) / (tasks * tile) * tile, least);
    if (2 * height > block_rows + tile) height = block_rows;
  }

  int64_t to_block() const { return (block_rows + height - 1) / height; }
  int64_t count() const { return rows / block_rows * to_block() + (rows % block_rows + height - 1) / height; }
  int64_t begin(int64_t c) const { return c / to_block() * block_rows + c % to_block() * height; }
  int64_t end(int64_t c) const { return std::min({begin(c) + height, (c / to_block() + 1) * block_rows, rows}); }
};

// Rows [begin, begin + count) of a slice, [row][panel_columns], zeros past the last element; transposed, [d][panel_columns].
template <typename A>
inline void pack_slice(const Rows& rows, int64_t begin, int64_t count, int64_t slice, bool transposed, A* out) {
  constexpr int64_t columns = panel_columns<A>;
  const int64_t depth = std::min(columns, rows.depth - slice * columns);
  with_type(rows.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<Acc<T>, A>) {
      const T* from = static_cast<const T*>(rows.data) + begin * rows.stride_n + slice * columns * rows.stride_d;
      if (transposed) pack(from, depth, count, columns, rows.stride_d, rows.stride_n, out);
      else pack(from, count, depth, columns, rows.stride_n, rows.stride_d, out);
    }
  });
}

// All rows of a side, transposed: [panel][slice][d][panel_columns].
template <typename A>
struct TransposedRows {
  static constexpr int64_t columns = panel_columns<A>;
  const int64_t slices, panels;
  Scratch<A> data;

  TransposedRows(const Rows& rows, const Parallel& parallel)
      : slices(slices_of<A>(rows.depth)),
        panels((rows.count + columns - 1) / columns),
        data(panels * slices * columns * columns, uncleared) {
    for_tasks(parallel, panels * slices, rows.count * rows.depth, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t first = at / slices * columns;
        pack_slice(rows, first, std::min(columns, rows.count - first), at % slices, true, data.data + at * columns * columns);
      }
    });
  }

  const A* slice(int64_t panel, int64_t s) const { return data.data + (panel * slices + s) * columns * columns; }
};

// A block of logits of rows of a, transposed, against rows of b.
template <typename A, typename Logit>
inline void make_kept(const LogitBlock<A>& block, const TransposedRows<A>& a, const Block<A>& b, int64_t depth, const Logit& logit) {
  constexpr int NV = gemm_vectors<A>;
  constexpr int64_t columns = panel_columns<A>, lanes = lanes_of<A>;
  for (int64_t p = 0; p < block.columns(); p += columns) {
    for (int64_t j = 0; j < block.count; j += gemm_rows<A>) {
      with_rows<gemm_rows<A>>(block.count - j, [&](auto height) {
        V<A> tile[height()][NV] = {};
        for (int64_t s = 0; s < a.slices; ++s)
          gemm_tile<A, height(), NV>(
              std::min(columns, depth - s * columns), b.slice(s) + j * b.row_stride, b.row_stride, 1, a.slice((block.i + p) / columns, s),
              columns, tile);
        for_tile(tile, [&](int r, int v, const V<A>& product) {
          store<A>(block.line(j + r) + p + v * lanes, logit(product, block.i + p + v * lanes, block.j + j + r));
        });
      });
    }
  }
}

// gradient of rows [begin, end) of one side = weights times all rows of the other one.
template <typename A>
inline void multiply_kept(
    const KeptBlocks<A>& weights, bool of_b, const GradientSum<A>& gradient, const Rows& other, int64_t begin, int64_t end, A* packed) {
  const int64_t depth = other.depth;
  gradient.clear(begin, end);
  for (int64_t k = 0; k < other.count; k += block_rows) {
    const int64_t count = std::min(block_rows, other.count - k);
    const A* from = of_b ? weights.block(k, count, begin, end - begin).data : weights.block(begin, end - begin, k, count).data;
    for (int64_t s = 0; s < slices_of<A>(depth); ++s) {
      pack_slice(other, k, count, s, false, packed);
      add_slice<A>(
          end - begin, count, from, of_b ? weights.line : 1, of_b ? 1 : weights.line, packed, panel_columns<A>, s, depth,
          gradient.data + begin * depth);
    }
  }
}
