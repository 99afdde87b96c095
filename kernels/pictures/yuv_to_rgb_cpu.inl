// YUV planes to resized RGB in one pass: see NOTES.md for the order of the steps and why all of it is in whole numbers.
//
// An output row: rows of each plane summed by weight over the columns the box needs, the sums shrunk along the row, then colours.
// Nothing larger than a row is kept.

// The axes of a call, the same for every frame and thread.
struct YuvAxes {
  ResizeAxis rows, columns, chroma_rows, chroma_columns;
  PickedAxis picked, chroma_picked;

  explicit YuvAxes(const YuvToRgbArgs& a)
      : rows(a.height, 1, false, a.top, a.bottom, a.out_height), columns(a.width, 1, false, a.left, a.right, a.out_width),
        chroma_rows(a.chroma_height, ratio(a.height, a.chroma_height), false, a.top, a.bottom, a.out_height),
        chroma_columns(a.chroma_width, ratio(a.width, a.chroma_width), !a.centred, a.left, a.right, a.out_width),
        picked(columns, a.out_width), chroma_picked(chroma_columns, a.out_width) {}

  static int64_t ratio(int64_t pixels, int64_t chroma) { return pixels == chroma ? 1 : 2; }
};

struct YuvToRgb {
  typedef int32_t Word __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  typedef int16_t Short __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  typedef int32_t Four __attribute__((vector_size(16)));
  static constexpr int64_t lanes = AVFAST_VECTOR_BYTES / 4, width = 2 * lanes;  // of words and of shorts
  static constexpr int32_t row_bits = 7;      // behind the point of a sum of rows: 15 bits in all
  static constexpr int32_t matrix_bits = 13;  // of the matrix

  const YuvToRgbArgs& args;
  const YuvAxes& axes;
  // Blocks of outputs may read past the last pixel, by weights of zero, and write past the last output.
  Scratch<int16_t> line{std::max(args.width, args.chroma_width) + 64};
  Scratch<int32_t> y{ResizeAxis::rounded(args.out_width)}, u{ResizeAxis::rounded(args.out_width)},
      v{ResizeAxis::rounded(args.out_width)};
  Scratch<uint8_t> bytes{args.table ? 3 * args.out_width : 1};

  // Products of pairs of shorts, added.
  static Four add_pairs_of_four(Four a, Four b) {
#ifdef __SSE2__
    typedef int16_t eight __attribute__((vector_size(16)));
    return (Four)__builtin_ia32_pmaddwd128((eight)a, (eight)b);
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
  static Word add_pairs(Word a, Word b) {
#if AVFAST_VECTOR_BYTES == 64
    return (Word)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif AVFAST_VECTOR_BYTES == 32
    return (Word)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return add_pairs_of_four(a, b);
#endif
  }

  // A vector of bytes as shorts. GCC's own conversion goes element by element.
  static Short widened(const uint8_t* p) {
#if AVFAST_VECTOR_BYTES == 64
    return (Short)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
#elif AVFAST_VECTOR_BYTES == 32
    return (Short)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
#elif defined(__SSE2__)
    typedef char sixteen __attribute__((vector_size(16)));
    int64_t bits;
    std::memcpy(&bits, p, sizeof bits);
    typedef int64_t two __attribute__((vector_size(16)));
    return (Short)__builtin_ia32_punpcklbw128((sixteen)two{bits}, sixteen{});
#else
    Short x;
    for (int64_t l = 0; l < width; ++l) x[l] = p[l];
    return x;
#endif
  }

  // Shorts of two rows side by side, the lower or the upper half of every sixteen bytes; and words so ordered as shorts in order.
  static Word beside(Short a, Short b, bool upper) {
#if AVFAST_VECTOR_BYTES == 64
    return (Word)(upper ? _mm512_unpackhi_epi16((__m512i)a, (__m512i)b) : _mm512_unpacklo_epi16((__m512i)a, (__m512i)b));
#elif AVFAST_VECTOR_BYTES == 32
    return (Word)(upper ? _mm256_unpackhi_epi16((__m256i)a, (__m256i)b) : _mm256_unpacklo_epi16((__m256i)a, (__m256i)b));
#else
    return (Word)(upper ? __builtin_shuffle(a, b, Short{4, 12, 5, 13, 6, 14, 7, 15})
                        : __builtin_shuffle(a, b, Short{0, 8, 1, 9, 2, 10, 3, 11}));
#endif
  }
  static Short narrowed(Word lower, Word upper) {
#if AVFAST_VECTOR_BYTES == 64
    return (Short)_mm512_packs_epi32((__m512i)lower, (__m512i)upper);
#elif AVFAST_VECTOR_BYTES == 32
    return (Short)_mm256_packs_epi32((__m256i)lower, (__m256i)upper);
#elif defined(__SSE2__)
    return (Short)__builtin_ia32_packssdw128(lower, upper);
#else
    Short x;
    for (int64_t l = 0; l < lanes; ++l) x[l] = int16_t(lower[l]), x[l + lanes] = int16_t(upper[l]);
    return x;
#endif
  }

  // N vectors of shorts.
  template <int64_t N>
  static void sum_rows(
      const uint8_t* p, int64_t stride, const int16_t* weight, int64_t taps, int64_t ahead, int16_t* to) {
    constexpr int32_t shift = weight_bits - row_bits;
    Word lower[N], upper[N];
    for (int64_t n = 0; n < N; ++n) lower[n] = upper[n] = Word{} + (1 << (shift - 1));
    for (int64_t k = 0; k < taps; k += 2) {
      const uint8_t *first = p + k * stride, *second = k + 1 < taps ? first + stride : first;
      int32_t pair;
      std::memcpy(&pair, weight + k, sizeof pair);
      prefetch(first, ahead), prefetch(second, ahead);
      for (int64_t n = 0; n < N; ++n) {
        const Short a = widened(first + n * width), b = widened(second + n * width);
        lower[n] += add_pairs(beside(a, b, false), Word{} + pair);
        upper[n] += add_pairs(beside(a, b, true), Word{} + pair);
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      const Short sum = narrowed(lower[n] >> shift, upper[n] >> shift);
      std::memcpy(to + n * width, &sum, sizeof sum);
    }
  }

  // What row i of the output is of rows of the plane, at the columns [low, high), into `line`.
  void sum_rows(const BytePlane& plane, const ResizeAxis& down, int64_t i, int64_t low, int64_t high) {
    const int16_t* weight = down.weights.data + i * down.kept;
    const uint8_t* p = plane.data + down.first[i] * plane.stride;
    // The rows that the next output row begins after: short pieces of rows far apart are not foreseen by the processor.
    const int64_t taps = down.taps[i], ahead = i + 1 < args.out_height ? (down.first[i + 1] - down.first[i]) * plane.stride : 0;
    int64_t x = low;
    for (; x + 2 * width <= high; x += 2 * width) sum_rows<2>(p + x, plane.stride, weight, taps, ahead, line.data + x);
    for (; x + width <= high; x += width) sum_rows<1>(p + x, plane.stride, weight, taps, ahead, line.data + x);
    if (x == high) return;
    if (high - width >= low) {  // once more what is there already
      x = high - width;
      sum_rows<1>(p + x, plane.stride, weight, taps, ahead, line.data + x);
      return;
    }
    for (; x < high; ++x) {
      int32_t sum = 1 << (weight_bits - row_bits - 1);
      for (int64_t k = 0; k < taps; ++k) sum += weight[k] * p[x + k * plane.stride];
      line[x] = int16_t(sum >> (weight_bits - row_bits));
    }
  }

  static Four load_eight(const int16_t* p) {
    Four x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static Four load_four(const int16_t* p, const int16_t* q) {
    typedef int64_t two __attribute__((vector_size(16)));
    int64_t a, b;
    std::memcpy(&a, p, sizeof a), std::memcpy(&b, q, sizeof b);
    return (Four)two{a, b};
  }
  // [a0 + a1, a2 + a3, b0 + b1, b2 + b3]
  static Four add_neighbours(Four a, Four b) {
    return __builtin_shuffle(a, b, Four{0, 2, 4, 6}) + __builtin_shuffle(a, b, Four{1, 3, 5, 7});
  }

  // `line` shrunk to the outputs, four at a time.
  void sum_columns(const ResizeAxis& across, int32_t* to) const {
    const int64_t kept = across.kept;
    for (int64_t j = 0; j < args.out_width; j += 4) {
      const int16_t *weight = across.weights.data + j * kept, *from[4];
      for (int64_t l = 0; l < 4; ++l) from[l] = line.data + across.first[j + l];
      Four sum;
      if (kept == 4) {
        const Four near = add_pairs_of_four(load_four(from[0], from[1]), load_eight(weight));
        sum = add_neighbours(near, add_pairs_of_four(load_four(from[2], from[3]), load_eight(weight + 8)));
      } else {
        Four part[4] = {};
        for (int64_t k = 0; k < kept; k += 8)
          for (int64_t l = 0; l < 4; ++l)
            part[l] += add_pairs_of_four(load_eight(from[l] + k), load_eight(weight + l * kept + k));
        sum = add_neighbours(add_neighbours(part[0], part[1]), add_neighbours(part[2], part[3]));
      }
      sum = (sum + (1 << (weight_bits - 1))) >> weight_bits;
      std::memcpy(to + j, &sum, sizeof sum);
    }
  }

#if AVFAST_VECTOR_BYTES == 64
  // The same for sixteen outputs at a time: their pixels are picked out of two registers.
  void pick_columns(const ResizeAxis& across, const PickedAxis& picked, int32_t* to) const {
    const int16_t *pick = picked.picks.data, *weight = picked.weights.data;
    for (int64_t j = 0; j < args.out_width; j += ResizeAxis::block) {
      const int16_t* from = line.data + across.first[j];
      const __m512i near = _mm512_loadu_si512(from), far = _mm512_loadu_si512(from + 32);
      Word sum = Word{} + (1 << (weight_bits - 1));
      for (int64_t p = 0; p < picked.pairs; ++p, pick += 32, weight += 32) {
        const __m512i pixels = _mm512_permutex2var_epi16(near, _mm512_loadu_si512(pick), far);
        sum += add_pairs((Word)pixels, (Word)_mm512_loadu_si512(weight));
      }
      sum >>= weight_bits;
      std::memcpy(to + j, &sum, sizeof sum);
    }
  }
#endif

  void shrink(
      const BytePlane& plane, const ResizeAxis& down, int64_t i, const ResizeAxis& across,
      [[maybe_unused]] const PickedAxis& picked, int32_t* to) {
    sum_rows(plane, down, i, across.low, across.high);
#if AVFAST_VECTOR_BYTES == 64
    if (picked.possible) return pick_columns(across, picked, to);
#endif
    sum_columns(across, to);
  }

  // One colour of a row: its y and shares of u and v.
  template <bool U, bool V>
  void colour(int32_t of_u, int32_t of_v, uint8_t* __restrict to) const {
    constexpr int32_t shift = matrix_bits + row_bits;
    const int32_t scale = args.scale, middle = 128 << row_bits;
    const int32_t base = (1 << (shift - 1)) - scale * (args.black << row_bits) - (of_u + of_v) * middle;
    const int32_t *__restrict py = y.data, *__restrict pu = u.data, *__restrict pv = v.data;
    const int64_t n = args.out_width;
    for (int64_t x = 0; x < n; ++x) {
      int32_t sum = base + scale * py[x];
      if constexpr (U) sum += of_u * pu[x];
      if constexpr (V) sum += of_v * pv[x];
      to[x] = uint8_t(std::min(std::max(sum >> shift, 0), 255));
    }
  }

  template <typename T>
  static void look_up(const char* table, const uint8_t* from, int64_t n, char* to) {
    for (int64_t x = 0; x < n; ++x) std::memcpy(to + x * sizeof(T), table + from[x] * sizeof(T), sizeof(T));
  }

  void run(int64_t begin, int64_t end) {
    const int64_t w = args.out_width, plane = args.out_height * w, element = args.table ? args.element : 1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t frame = task / args.out_height, i = task % args.out_height;
      shrink(args.y[frame], axes.rows, i, axes.columns, axes.picked, y.data);
      shrink(args.u[frame], axes.chroma_rows, i, axes.chroma_columns, axes.chroma_picked, u.data);
      shrink(args.v[frame], axes.chroma_rows, i, axes.chroma_columns, axes.chroma_picked, v.data);

      char* row = static_cast<char*>(args.rgb) + (frame * 3 * plane + i * w) * element;
      const auto place = [&](int64_t c) {
        return args.table ? bytes.data + c * w : reinterpret_cast<uint8_t*>(row) + c * plane;
      };
      colour<false, true>(0, args.red_v, place(0));
      colour<true, true>(args.green_u, args.green_v, place(1));
      colour<true, false>(args.blue_u, 0, place(2));
      for (int64_t c = 0; args.table && c < 3; ++c) {
        const char* table = static_cast<const char*>(args.table) + c * 256 * element;
        char* to = row + c * plane * element;
        if (element == 8)
          look_up<uint64_t>(table, place(c), w, to);
        else if (element == 4)
          look_up<uint32_t>(table, place(c), w, to);
        else
          look_up<uint16_t>(table, place(c), w, to);
      }
    }
  }
};

inline void yuv_to_rgb_cpu(const YuvToRgbArgs& args, const Parallel& parallel) {
  const YuvAxes axes{args};
  // A byte is a small part of the work that a float is elsewhere.
  const int64_t elements = args.frames * args.height * args.width / 16;
  for_tasks(parallel, args.frames * args.out_height, elements, [&](int64_t begin, int64_t end) {
    YuvToRgb{args, axes}.run(begin, end);
  });
}
