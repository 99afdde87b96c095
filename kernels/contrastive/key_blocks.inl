// Keys [K, D] a block at a time, as both inner products read them.

// Rows of one block, a multiple of the tile's rows. Long, because every block adds once to the [D][columns] sums of a panel;
// short enough for its keys and scores to stay in the second-level cache.
constexpr int64_t key_block = 252;

// along_d: unit u of row j at [j * row + u]. along_k: element d of the block's u-th unit of rows at [u * unit + d].
// For single elements both are the same memory.
template <typename U>
struct KeyBlock {
  const U *along_d, *along_k;
  int64_t row, unit;
  const U* ahead = nullptr;  // rows to fetch from memory meanwhile, as far apart as these

  // For the rows [j, j + rows) at work, those of the next block.
  void fetch_ahead(int64_t j, int64_t rows, int64_t width) const {
    if (!ahead) return;
    for (int64_t r = j; r < j + rows; ++r)
      for (int64_t u = 0; u < width; u += 64 / sizeof(U)) __builtin_prefetch(ahead + r * row + u, 0, 2);
  }
};

template <typename U>
struct KeyReader {
  static constexpr bool pairs = std::is_same_v<U, bf16x2_t>;
  Queue queue;
  int64_t depth;
  bool in_place;  // rows lie in memory as the product along d wants them
  Scratch<U> first, second;

  KeyReader(const Queue& queue, int64_t depth)
      : queue(queue),
        depth(depth),
        in_place(lies_right()),
        first(in_place ? 0 : key_block * units<U>(depth)),
        second(pairs ? units<U>(key_block) * depth : 0) {}

  // Rows [begin, begin + count).
  KeyBlock<U> read(int64_t begin, int64_t count) {
    KeyBlock<U> block{first.data, first.data, units<U>(depth), units<U>(depth)};
    if (in_place) {
      block.row = block.unit = queue.stride_k / elements_of<U>;
      block.along_d = block.along_k = static_cast<const U*>(queue.data) + begin * block.row;
    } else {
      with_type(queue.dtype, [&](auto type) {
        using T = decltype(type);
        pack(static_cast<const T*>(queue.data) + begin * queue.stride_k, count);
      });
    }
    if constexpr (pairs) {
      pair_rows(block, count);
      block.along_k = second.data;
      block.unit = depth;
    }
    return block;
  }

 private:
  bool lies_right() const {
    if (queue.stride_d != 1) return false;
    if constexpr (pairs)
      return queue.dtype == DType::bf16 && depth % 2 == 0 && queue.stride_k % 2 == 0 &&
             reinterpret_cast<uintptr_t>(queue.data) % sizeof(U) == 0;
    else
      return queue.dtype == (std::is_same_v<U, double> ? DType::f64 : DType::f32);
  }

  template <typename T>
  void pack(const T* x, int64_t count) {
    const int64_t width = units<U>(depth), row = queue.stride_k, step = queue.stride_d;
    if (step == 1) {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t u = 0; u < width; ++u) first[j * width + u] = unit_of<U>(x + j * row, 1, u, depth);
    } else {  // [D, K]: run along the rows, which are neighbours there
      for (int64_t u = 0; u < width; ++u)
        for (int64_t j = 0; j < count; ++j) first[j * width + u] = unit_of<U>(x + j * row, step, u, depth);
    }
  }

  // second [units of rows][d]: element d of rows 2u and 2u + 1.
  void pair_rows(const KeyBlock<U>& block, int64_t count) {
    for (int64_t u = 0; u < units<U>(count); ++u) {
      const U* even = block.along_d + 2 * u * block.row;
      pair_up(even, 2 * u + 1 < count ? even + block.row : nullptr, 1, depth, second.data + u * depth);
    }
  }
};
