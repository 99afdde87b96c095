// The products of an in-batch loss: logits of a block of rows of a against a block of rows of b, and what weights of that shape
// add to the rows of either side.

// Working memory of one task.
template <typename A>
struct Tiles {
  static constexpr int64_t columns = panel_columns<A>, lanes = lanes_of<A>;
  const int64_t depth, slices;
  Halves<A> halves;
  const RowReader<A> read_a, read_b;
  const int64_t height;
  Scratch<A> panels{halves.used ? 0 : height * slices * columns, uncleared};  // rows of a, transposed: [panel][d][columns]
  Scratch<A> logits{block_rows * logit_stride<A>, uncleared};
  Block<A> a{}, b{};
  LogitBlock<A> block{};

  Tiles(const Side<A>& a, const Side<A>& b)
      : depth(a.rows.depth),
        slices(slices_of<A>(depth)),
        halves(a, b),
        read_a(a.rows, halves.used),
        read_b(b.rows, halves.used),
        height(std::min(block_rows, (a.rows.count + columns - 1) / columns * columns)) {}

  A* panel(int64_t first_row) const { return panels.data + first_row * slices * columns; }

  // Rows of a that the next logits are of. Zeros where a panel ends past the last one.
  void take(int64_t first, int64_t rows) {
    block = {logits.data, first, rows, 0, 0};
    if constexpr (Halves<A>::possible) {
      if (halves.used) return halves.take(first, rows, block.columns());
    }
    a = read_a.read(first, rows);
    for (int64_t p = 0; p < block.columns(); p += columns)
      for (int64_t s = 0; s < slices; ++s)
        pack(a.slice(s) + p * a.row_stride, std::min(columns, depth - s * columns), std::min(columns, rows - p), columns, 1, a.row_stride,
             panel(p) + s * columns * columns);
  }

  template <typename Logit>
  const LogitBlock<A>& against(int64_t first, int64_t count, const Logit& logit, const Holes& holes) {
    constexpr int NV = gemm_vectors<A>;
    block.j = first, block.count = count;
    if constexpr (Halves<A>::possible && !std::is_same_v<Logit, DistanceLogit<A>>) {
      if (halves.used) {
        halves.against(block, logit);
        block.leave_out(holes);
        return block;
      }
    }
    b = read_b.read(first, count);
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

  // The block's weights, which took the place of its logits, are done.
  void weighed() {
    if constexpr (Halves<A>::possible) {
      if (halves.used) halves.round(block);
    }
  }
  // They times the rows of b, added to the rows of a; and the other way.
  void add_to_a(A* out) const {
    if constexpr (Halves<A>::possible) {
      if (halves.used) return halves.add_to_a(block, out + block.i * depth);
    }
    add_product<A>(block.rows, block.count, block.data, 1, logit_stride<A>, b, depth, out + block.i * depth);
  }
  void add_to_b(A* out) const {
    if constexpr (Halves<A>::possible) {
      if (halves.used) return halves.add_to_b(block, out + block.j * depth);
    }
    add_product<A>(block.count, block.rows, block.data, logit_stride<A>, 1, a, depth, out + block.j * depth);
  }
};
