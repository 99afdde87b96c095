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
};

template <typename U>
struct KeyReader {
  static constexpr bool pairs = std::is_same_v<U, bf16x2_t>;
  Queue queue;
  int64_t depth;
  bool in_place;  // the rows lie in memory as the products want them
  Scratch<U> first, second;

  KeyReader(const Queue& queue, int64_t depth)
      : queue(queue),
        depth(depth),
        in_place(!pairs && dtype_matches(queue.dtype) && queue.stride_d == 1),
        first(in_place ? 0 : key_block * units<U>(depth)),
        second(pairs ? units<U>(key_block) * depth : 0) {}

  // Rows [begin, begin + count).
  KeyBlock<U> read(int64_t begin, int64_t count) {
    KeyBlock<U> block{};
    if (in_place) {
      const U* rows = static_cast<const U*>(queue.data) + begin * queue.stride_k;
      return {rows, rows, queue.stride_k, queue.stride_k};
    }
    with_type(queue.dtype, [&](auto type) {
      using T = decltype(type);
      pack(static_cast<const T*>(queue.data) + begin * queue.stride_k, count);
    });
    block.along_d = first.data;
    block.row = units<U>(depth);
    block.along_k = pairs ? second.data : first.data;
    block.unit = pairs ? depth : units<U>(depth);
    return block;
  }

 private:
  static bool dtype_matches(DType dtype) {
    return dtype == (std::is_same_v<U, double> ? DType::f64 : DType::f32);
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
    if constexpr (pairs) {
      // Element d of rows 2u and 2u + 1, taken from the pairs along d that were just made.
      for (int64_t u = 0; u < units<U>(count); ++u) {
        const U* even = first.data + 2 * u * width;
        const U* odd = even + width;
        const uint32_t keep = 2 * u + 1 < count ? 0xffffffffu : 0u;
        U* out = second.data + u * depth;
        for (int64_t d = 0; d + 1 < depth; d += 2) {
          const uint32_t a = even[d / 2].bits, b = odd[d / 2].bits & keep;
          out[d].bits = (a & 0xffffu) | b << 16;
          out[d + 1].bits = a >> 16 | (b & 0xffff0000u);
        }
        if (depth % 2) out[depth - 1].bits = (even[depth / 2].bits & 0xffffu) | (odd[depth / 2].bits & keep) << 16;
      }
    }
  }
};
