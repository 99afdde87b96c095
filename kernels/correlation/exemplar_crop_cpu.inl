// Boxes of rotated images, resized: see NOTES.md for why in two stages, and in which order of rows and columns.
//
// Four channels of an image lie side by side, a pixel: bytes stay bytes until they are read.

// So many elements that their memory stays with the thread: boxes are many, and each would ask for fresh pages.
template <typename T>
inline int64_t roomy(int64_t n) {
  return std::max(n, int64_t(ScratchCache::smallest / sizeof(T)));
}

// Which samples make an output: [first, first + count) of them.
struct CropTaps {
  int64_t first, count;
};

// An axis of the upright box: samples about a pixel apart, and how outputs are made of them.
template <typename A>
struct CropAxis {
  double start, step;
  int64_t samples, most;  // most taps of an output
  Scratch<CropTaps> taps;
  Scratch<A> weights;  // [out][most]

  CropAxis(double from, double to, int64_t longest, int64_t out, bool cubic, bool antialias)
      : samples(count(from, to, longest)), most(reach(samples, out, cubic, antialias)), taps(out, uncleared),
        weights(roomy<A>(out * most), uncleared) {
    step = (to - from) / double(samples);
    start = from + 0.5 * step;
    const double scale = double(samples) / double(out), wider = antialias ? std::max(scale, 1.0) : 1.0;
    const double support = (cubic ? 2 : 1) * wider, per_wider = 1 / wider;
    Scratch<double> found(most, uncleared);
    for (int64_t i = 0; i < out; ++i) {
      const double centre = scale * (double(i) + 0.5);
      const int64_t first = int64_t(std::max(centre - support + 0.5, 0.0));
      const int64_t n = std::min(int64_t(centre + support + 0.5), samples) - first;
      taps[i] = {first, n};
      for (int64_t j = 0; j < n; ++j) found[j] = filter((double(first + j) - centre + 0.5) * per_wider, cubic);
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += found[j];
      for (int64_t j = 0; j < n; ++j) weights[i * most + j] = A(found[j] / sum);
    }
  }

  // The same outputs of samples in the opposite order.
  void reverse(int64_t out) {
    for (int64_t i = 0; i < out; ++i) {
      taps[i].first = samples - taps[i].first - taps[i].count;
      std::reverse(weights.data + i * most, weights.data + i * most + taps[i].count);
    }
  }

  // NaN and boxes far larger than the image are bounded too.
  static int64_t count(double from, double to, int64_t longest) {
    const double n = std::nearbyint(std::abs(to - from));
    return n >= 1 ? int64_t(std::min(n, double(longest))) : 1;
  }
  static int64_t reach(int64_t samples, int64_t out, bool cubic, bool antialias) {
    const double scale = antialias ? std::max(double(samples) / double(out), 1.0) : 1.0;
    return std::min(2 * int64_t(std::ceil((cubic ? 2 : 1) * scale)) + 1, samples);
  }
  static double filter(double x, bool cubic) {
    x = std::abs(x);
    if (!cubic) return x < 1 ? 1 - x : 0;
    const double near = (1.5 * x - 2.5) * x * x + 1, far = ((-0.5 * x + 2.5) * x - 4) * x + 2;
    return x < 1 ? near : x < 2 ? far : 0;
  }
};

// The same for `together` outputs at a time and four channels: of each as many samples, whose weights may be zero.
template <typename A>
struct CropWindows {
  int64_t samples = 0;       // of an output
  Scratch<int64_t> first;
  Scratch<A> weights;        // [out / together][samples][together][4]

  CropWindows(const CropAxis<A>& axis, int64_t out, int64_t together)
      : samples(widest(axis, out)), first(padded(out), uncleared), weights(roomy<A>(4 * padded(out) * samples), uncleared) {
    for (int64_t i = 0; i < padded(out); ++i) {
      const CropTaps t = i < out ? axis.taps[i] : CropTaps{0, 0};
      first[i] = std::min(t.first, axis.samples - samples);
      A* to = weights.data + (i / together * samples * together + i % together) * 4;
      for (int64_t j = 0; j < samples; ++j, to += 4 * together) {
        const int64_t tap = first[i] + j - t.first;
        const A weight = tap >= 0 && tap < t.count ? axis.weights[i * axis.most + tap] : A(0);
        for (int64_t c = 0; c < 4; ++c) to[c] = weight;
      }
    }
  }

  static int64_t padded(int64_t out) { return (out + 3) / 4 * 4; }
  static int64_t widest(const CropAxis<A>& axis, int64_t out) {
    int64_t n = 0;
    for (int64_t i = 0; i < out; ++i) n = std::max(n, axis.taps[i].count);
    return n;
  }
};

template <typename T>
struct ExemplarCrop {
  static constexpr bool bytes = std::is_same_v<T, uint8_t>;
  using A = Acc<T>;
  using P = std::conditional_t<bytes, uint8_t, A>;  // as pixels are kept
  typedef A Pixel __attribute__((vector_size(4 * sizeof(A))));
  static constexpr int64_t lanes = lanes_of<A>;
  static constexpr int64_t together = lanes / 4 > 0 ? lanes / 4 : 1;  // pixels of a vector
  static constexpr int64_t ring_bytes = 256 << 10;                    // of rows that wait, at most

  const ExemplarCropArgs& args;
  const int64_t longest = 2 * std::max(args.height, args.width), pitch = args.width + 1;
  Scratch<P> line{4 * (args.width + 16), uncleared};
  Scratch<int64_t> place{longest + 4, uncleared};
  Scratch<A> right{longest + 4, uncleared}, down{longest + 4, uncleared};
  P* image = nullptr;  // with its last row and column once more
  int64_t packed = -1;

  static Pixel read(const A* p) {
    Pixel x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void write(A* p, const Pixel& x) { std::memcpy(p, &x, sizeof x); }
  static int64_t whole(int64_t pixels) { return (pixels + 3) / 4 * 4; }

  // ------------------------------------------------------------------------------------- pixels of the image

  // Sixteen pixels of planes of bytes.
  static void interleave(const uint8_t* const* plane, uint8_t* to) {
    typedef uint8_t Sixteen __attribute__((vector_size(16)));
    typedef uint16_t Eight __attribute__((vector_size(16)));
    Sixteen x[4];
    for (int64_t c = 0; c < 4; ++c) std::memcpy(&x[c], plane[c], sizeof x[c]);
    constexpr Sixteen low{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    constexpr Sixteen high{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    constexpr Eight lower{0, 8, 1, 9, 2, 10, 3, 11}, upper{4, 12, 5, 13, 6, 14, 7, 15};
    for (int64_t half = 0; half < 2; ++half) {
      const Eight front = (Eight)(half ? __builtin_shuffle(x[0], x[1], high) : __builtin_shuffle(x[0], x[1], low));
      const Eight back = (Eight)(half ? __builtin_shuffle(x[2], x[3], high) : __builtin_shuffle(x[2], x[3], low));
      const Eight first = __builtin_shuffle(front, back, lower), second = __builtin_shuffle(front, back, upper);
      std::memcpy(to + 32 * half, &first, sizeof first), std::memcpy(to + 32 * half + 16, &second, sizeof second);
    }
  }

  // Pixels [x, x + n) of row y of four channels from 4 * group on; channels there are not repeat the first.
  void pack_row(int64_t b, int64_t group, int64_t y, int64_t x, int64_t n, P* to) const {
    const T* plane[4];
    for (int64_t l = 0; l < 4; ++l) {
      const int64_t c = 4 * group + l < args.channels ? 4 * group + l : 4 * group;
      plane[l] = static_cast<const T*>(args.images) + b * args.stride_b + c * args.stride_c + y * args.stride_h +
                 x * args.stride_w;
    }
    int64_t i = 0;
    if constexpr (bytes) {
      for (; args.stride_w == 1 && i + 16 <= n; i += 16) {
        const uint8_t* from[4] = {plane[0] + i, plane[1] + i, plane[2] + i, plane[3] + i};
        interleave(from, to + 4 * i);
      }
    }
    for (; i < n; ++i)
      for (int64_t l = 0; l < 4; ++l) {
        if constexpr (bytes) to[4 * i + l] = plane[l][i * args.stride_w];
        else to[4 * i + l] = to_float(plane[l][i * args.stride_w]);
      }
  }

  void pack(int64_t b, int64_t group) const {
    for (int64_t y = 0; y <= args.height; ++y) {
      P* to = image + 4 * y * pitch;
      pack_row(b, group, std::min(y, args.height - 1), 0, args.width, to);
      std::memcpy(to + 4 * args.width, to + 4 * (args.width - 1), 4 * sizeof(P));
    }
  }

  // Pixels [x, x + n) of row y as they are.
  void copy(int64_t b, int64_t group, int64_t y, int64_t x, int64_t n, A* to) const {
    if constexpr (bytes) {
      pack_row(b, group, y, x, n, line.data);
      for (int64_t i = 0; i < 4 * n; ++i) to[i] = A(line[i]);
    } else {
      pack_row(b, group, y, x, n, to);
    }
  }

  // ------------------------------------------------------------------------------------- points between pixels

  // The nearest point of the picture. NaN is the first pixel.
  static double bounded(double x, double last) {
    x = x > 0 ? x : 0;
    return x < last ? x : last;
  }

  // Points of one upright row, from (x, y) on in pixels of the picture: the pixel, and how far on to the next ones.
  template <bool inside, typename Index>
  void find(int64_t n, double x, double y, double dx, double dy, Index* at) const {
    const double last_x = double(args.width - 1), last_y = double(args.height - 1);
    const Index step = Index(pitch);
    A *__restrict across = right.data, *__restrict below = down.data;
    for (int64_t i = 0; i < n; ++i) {
      double px = x + double(int32_t(i)) * dx, py = y + double(int32_t(i)) * dy;
      if constexpr (!inside) px = bounded(px, last_x), py = bounded(py, last_y);
      const int32_t column = int32_t(px), row = int32_t(py);
      across[i] = A(px - double(column));
      below[i] = A(py - double(row));
      at[i] = Index(row) * step + column;
    }
    for (int64_t i = n; i < whole(n); ++i) across[i] = below[i] = A(0), at[i] = 0;
  }

#if AVFAST_VECTOR_BYTES == 64
  static __m512 widened(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x)); }
#elif AVFAST_VECTOR_BYTES == 32
  static __m256 widened(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)); }
#endif

  // Pixels at so many places, and those to the right of them.
  template <typename Index>
  static void neighbours(const uint8_t* from, const Index* at, V<float>& left, V<float>& next) {
    const auto two = [&](int64_t i) {
      int64_t x;
      std::memcpy(&x, from + 4 * int64_t(at[i]), sizeof x);
      return x;
    };
#if AVFAST_VECTOR_BYTES == 64
    const __m128 a = _mm_castsi128_ps(_mm_set_epi64x(two(1), two(0))), b = _mm_castsi128_ps(_mm_set_epi64x(two(3), two(2)));
    left = (V<float>)widened(_mm_castps_si128(_mm_shuffle_ps(a, b, 0x88)));
    next = (V<float>)widened(_mm_castps_si128(_mm_shuffle_ps(a, b, 0xdd)));
#elif AVFAST_VECTOR_BYTES == 32
    const __m128i a = _mm_shuffle_epi32(_mm_set_epi64x(two(1), two(0)), 0xd8);
    left = (V<float>)widened(a);
    next = (V<float>)widened(_mm_srli_si128(a, 8));
#else
    typedef uint8_t Sixteen __attribute__((vector_size(16)));
    typedef uint16_t Eight __attribute__((vector_size(16)));
    typedef int64_t Two __attribute__((vector_size(16)));
    typedef int32_t Four __attribute__((vector_size(16)));
    const Eight a = (Eight)__builtin_shuffle(
        (Sixteen)Two{two(0), 0}, Sixteen{}, Sixteen{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    left = __builtin_convertvector((Four)__builtin_shuffle(a, Eight{}, Eight{0, 8, 1, 9, 2, 10, 3, 11}), V<float>);
    next = __builtin_convertvector((Four)__builtin_shuffle(a, Eight{}, Eight{4, 12, 5, 13, 6, 14, 7, 15}), V<float>);
#endif
  }

  // A number for each pixel of a vector.
  static V<float> spread(const float* p) {
#if AVFAST_VECTOR_BYTES == 64
    const __m512i index = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return (V<float>)_mm512_permutexvar_ps(index, _mm512_castps128_ps512(_mm_loadu_ps(p)));
#elif AVFAST_VECTOR_BYTES == 32
    return (V<float>)_mm256_set_m128(_mm_set1_ps(p[1]), _mm_set1_ps(p[0]));
#else
    return splat<float>(*p);
#endif
  }

  template <typename Index>
  void between(int64_t n, const Index* at, A* to) const {
    if constexpr (bytes) {
      const uint8_t* below = image + 4 * pitch;
      for (int64_t i = 0; i < n; i += together) {
        V<float> a, b, c, d;
        neighbours(image, at + i, a, b), neighbours(below, at + i, c, d);
        const V<float> across = spread(right.data + i);
        a += across * (b - a), c += across * (d - c);
        store<float>(to + 4 * i, a + spread(down.data + i) * (c - a));
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        const A *upper = image + 4 * int64_t(at[i]), *lower = upper + 4 * pitch;
        const Pixel above = read(upper) + right[i] * (read(upper + 4) - read(upper));
        const Pixel below = read(lower) + right[i] * (read(lower + 4) - read(lower));
        write(to + 4 * i, above + down[i] * (below - above));
      }
    }
  }

  template <typename Index>
  void sample_at(int64_t n, double x, double y, double dx, double dy, Index* at, A* to) const {
    const double last_x = double(args.width - 1), last_y = double(args.height - 1);
    const double end_x = x + double(n - 1) * dx, end_y = y + double(n - 1) * dy;
    const bool inside = std::min(x, end_x) >= 0 && std::max(x, end_x) <= last_x && std::min(y, end_y) >= 0 &&
                        std::max(y, end_y) <= last_y;
    inside ? find<true>(n, x, y, dx, dy, at) : find<false>(n, x, y, dx, dy, at);
    between(n, at, to);
  }

  // Points (x, y), (x + dx, y + dy), ... of the picture.
  void sample(int64_t n, double x, double y, double dx, double dy, A* to) const {
    if ((args.height + 1) * pitch <= std::numeric_limits<int32_t>::max())
      sample_at(n, x, y, dx, dy, reinterpret_cast<int32_t*>(place.data), to);
    else
      sample_at(n, x, y, dx, dy, place.data, to);
  }

  // ------------------------------------------------------------------------------------- sums

  // N vectors of the weighted sum of rows, `width` pixels long, of which row r lies in place r % kept of the ring.
  template <int64_t N>
  static void sum_rows(const A* ring, const int64_t* row, const A* weight, int64_t count, A* to) {
    V<A> sum[N] = {};
    for (int64_t j = 0; j < count; ++j)
      for (int64_t n = 0; n < N; ++n) sum[n] += weight[j] * load<A>(ring + row[j] + n * lanes);
    for (int64_t n = 0; n < N; ++n) store<A>(to + n * lanes, sum[n]);
  }

  // Pixels at so many places of a row, one from each.
  static V<float> pixels_at(const float* const* from, int64_t offset) {
#if AVFAST_VECTOR_BYTES == 64
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(from[0] + offset));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(from[1] + offset), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(from[2] + offset), 2);
    return (V<float>)_mm512_insertf32x4(x, _mm_loadu_ps(from[3] + offset), 3);
#elif AVFAST_VECTOR_BYTES == 32
    return (V<float>)_mm256_set_m128(_mm_loadu_ps(from[1] + offset), _mm_loadu_ps(from[0] + offset));
#else
    return load<float>(from[0] + offset);
#endif
  }

  // A row of samples to a row of outputs. Of numbers that may be infinite, an output takes no more than its taps.
  static void along(const CropAxis<A>& columns, const CropWindows<A>& windows, int64_t out, const A* from, A* to) {
    if constexpr (bytes) {
      const float* weight = windows.weights.data;
      for (int64_t i = 0; i < whole(out); i += together) {
        const float* pixel[together];
        for (int64_t l = 0; l < together; ++l) pixel[l] = from + 4 * windows.first[i + l];
        V<float> sum{};
        for (int64_t j = 0; j < windows.samples; ++j, weight += lanes) sum += load<float>(weight) * pixels_at(pixel, 4 * j);
        store<float>(to + 4 * i, sum);
      }
    } else {
      for (int64_t i = 0; i < out; ++i) {
        const CropTaps t = columns.taps[i];
        const A *weight = columns.weights.data + i * columns.most, *pixel = from + 4 * t.first;
        Pixel sum{};
        for (int64_t j = 0; j < t.count; ++j) sum += weight[j] * read(pixel + 4 * j);
        write(to + 4 * i, sum);
      }
    }
  }

  // One row of a crop, plane by plane.
  void finish(const A* __restrict sums, int64_t channels, T* __restrict crop, uint32_t* __restrict row) const {
    const int64_t area = args.out * args.out;
    if constexpr (bytes) {
      uint8_t* __restrict rounded = reinterpret_cast<uint8_t*>(row);
      for (int64_t i = 0; i < 4 * args.out; ++i)
        rounded[i] = uint8_t(int32_t(std::min(std::max(sums[i], A(0)), A(255)) + A(0.5)));
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < args.out; ++k) crop[c * area + k] = uint8_t(row[k] >> (8 * c));
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < args.out; ++k) crop[c * area + k] = from_float<T>(sums[4 * k + c]);
    }
  }

  // Whether the points of an axis, in pixels of the picture, are pixels of it.
  static bool pixels(double first, double step, int64_t n, int64_t side) {
    const double last = first + step * double(n - 1);
    return std::abs(step) == 1 && first == std::floor(first) && std::min(first, last) >= 0 &&
           std::max(first, last) <= double(side - 1);
  }

  void one(int64_t task, int64_t group) {
    double box[5];
    for (int64_t i = 0; i < 5; ++i)
      box[i] = args.double_boxes ? static_cast<const double*>(args.boxes)[task * 5 + i]
                                 : double(static_cast<const float*>(args.boxes)[task * 5 + i]);
    const double radians = box[0] * (3.14159265358979323846 / 180), cos = std::cos(radians), sin = std::sin(radians);
    const double middle_x = 0.5 * double(args.width - 1), middle_y = 0.5 * double(args.height - 1);
    const int64_t b = task / args.count, out = args.out;
    const CropAxis<A> rows(box[1], box[3], longest, out, args.cubic, args.antialias);
    CropAxis<A> columns(box[2], box[4], longest, out, args.cubic, args.antialias);

    const double left = columns.start + middle_x, top = rows.start + middle_y;
    const bool upright = box[0] == 0 && pixels(left, columns.step, columns.samples, args.width) &&
                         pixels(top, rows.step, rows.samples, args.height);
    const int64_t first_x = upright ? int64_t(std::min(left, left + columns.step * double(columns.samples - 1))) : 0;
    if (upright && columns.step < 0) columns.reverse(out);
    const CropWindows<A> windows(columns, bytes ? out : 0, together);
    const auto take = [&](int64_t r, A* to) {
      if (upright) return copy(b, group, int64_t(top + double(r) * rows.step), first_x, columns.samples, to);
      if (b * groups() + group != packed) pack(b, group), packed = b * groups() + group;
      const double y = rows.start + double(r) * rows.step;
      sample(
          columns.samples, cos * columns.start - sin * y + middle_x, sin * columns.start + cos * y + middle_y,
          cos * columns.step, sin * columns.step, to);
    };

    // Rows first, or columns first: what has less to compute, and does not keep too much.
    const double n = double(columns.samples), m = double(rows.samples), o = double(out);
    const double per_row = o * double(columns.most), per_column = o * double(rows.most) / double(together);
    const bool columns_first = rows.most * columns.samples * int64_t(4 * sizeof(A)) > ring_bytes ||
                               m * per_row + o * per_column < o * per_row + n * per_column;
    const int64_t width = columns_first ? whole(out) : whole(columns.samples);
    Scratch<A> ring(roomy<A>(4 * width * rows.most), uncleared), samples(roomy<A>(4 * whole(columns.samples)), uncleared);
    Scratch<A> sums(roomy<A>(4 * width), uncleared), small(roomy<A>(4 * whole(out)), uncleared);
    Scratch<int64_t> row(rows.most, uncleared);
    Scratch<uint32_t> bytes_of_row(whole(out), uncleared);
    const int64_t live = std::min<int64_t>(4, args.channels - 4 * group), area = out * out;
    T* crop = static_cast<T*>(args.crops) + (task * args.channels + 4 * group) * area;
    int64_t taken = 0;
    for (int64_t i = 0; i < out; ++i) {
      const CropTaps t = rows.taps[i];
      for (taken = std::max(taken, t.first); taken < t.first + t.count; ++taken) {
        A* to = ring.data + taken % rows.most * 4 * width;
        if (columns_first) take(taken, samples.data), along(columns, windows, out, samples.data, to);
        else take(taken, to);
      }
      for (int64_t j = 0, place = t.first % rows.most; j < t.count; ++j, place = place + 1 < rows.most ? place + 1 : 0)
        row[j] = place * 4 * width;
      const A* weight = rows.weights.data + i * rows.most;
      int64_t p = 0;
      for (; p + 4 * lanes <= 4 * width; p += 4 * lanes) sum_rows<4>(ring.data + p, row.data, weight, t.count, sums.data + p);
      for (; p < 4 * width; p += lanes) sum_rows<1>(ring.data + p, row.data, weight, t.count, sums.data + p);
      if (!columns_first) along(columns, windows, out, sums.data, small.data);
      finish(columns_first ? sums.data : small.data, live, crop + i * out, bytes_of_row.data);
    }
  }

  int64_t groups() const { return (args.channels + 3) / 4; }

  void run(int64_t begin, int64_t end) {
    Scratch<P> pixels_of_image(4 * (args.height + 1) * pitch + 16, uncleared);
    image = pixels_of_image.data;
    for (int64_t task = begin; task < end; ++task)
      for (int64_t group = 0; group < groups(); ++group) one(task, group);
  }
};

inline void exemplar_crop_cpu(const ExemplarCropArgs& args, const Parallel& parallel) {
  const int64_t tasks = args.batch * args.count;
  const auto cut = [&](auto type) {
    for_tasks(parallel, tasks, tasks * args.channels * args.height * args.width, [&](int64_t begin, int64_t end) {
      ExemplarCrop<decltype(type)>{args}.run(begin, end);
    });
  };
  if (args.bytes)
    cut(uint8_t{});
  else
    with_type(args.dtype, cut);
}
