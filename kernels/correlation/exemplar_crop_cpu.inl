// Boxes of rotated images, resized: see NOTES.md for why in two stages.
//
// Four channels of an image are laid side by side once, so that each of the four neighbours of a point is one load. Rows of
// the upright box are sampled one at a time, shrunk along the row at once, and kept only so: [rows][out] instead of [rows][columns].

template <typename T>
struct ExemplarCrop {
  using A = Acc<T>;
  typedef A Pixel __attribute__((vector_size(4 * sizeof(A))));
  static constexpr int64_t lanes = lanes_of<A>;

  // What one output takes from its inputs [first, first + count).
  struct Taps {
    int64_t first, count;
  };

  // An axis of the upright box: samples about a pixel apart, and how outputs are made of them.
  struct Axis {
    double start, step;
    int64_t samples, most;  // most taps of an output
    Scratch<Taps> taps;
    Scratch<A> weights;  // [out][most]

    Axis(double from, double to, int64_t longest, int64_t out, bool cubic, bool antialias)
        : samples(count(from, to, longest)), taps(out), weights(out * reach(samples, out, cubic, antialias)) {
      step = (to - from) / double(samples);
      start = from + 0.5 * step;
      most = reach(samples, out, cubic, antialias);
      const double scale = double(samples) / double(out), wider = antialias ? std::max(scale, 1.0) : 1.0;
      const double support = (cubic ? 2 : 1) * wider;
      for (int64_t i = 0; i < out; ++i) {
        const double centre = scale * (double(i) + 0.5);
        const int64_t first = int64_t(std::max(centre - support + 0.5, 0.0));
        const int64_t end = std::min(int64_t(centre + support + 0.5), samples);
        taps[i] = {first, end - first};
        double sum = 0;
        for (int64_t j = first; j < end; ++j) sum += filter((double(j) - centre + 0.5) / wider, cubic);
        for (int64_t j = first; j < end; ++j)
          weights[i * most + j - first] = A(filter((double(j) - centre + 0.5) / wider, cubic) / sum);
      }
    }

    // NaN and boxes far larger than the image are bounded too.
    static int64_t count(double from, double to, int64_t longest) {
      const double n = std::nearbyint(std::abs(to - from));
      return n >= 1 ? int64_t(std::min(n, double(longest))) : 1;
    }
    static int64_t reach(int64_t samples, int64_t out, bool cubic, bool antialias) {
      const double scale = antialias ? std::max(double(samples) / double(out), 1.0) : 1.0;
      return 2 * int64_t(std::ceil((cubic ? 2 : 1) * scale)) + 1;
    }
    static double filter(double x, bool cubic) {
      x = std::abs(x);
      if (!cubic) return x < 1 ? 1 - x : 0;
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    }
  };

  const ExemplarCropArgs& args;
  const int64_t longest = 2 * std::max(args.height, args.width), pitch = args.width + 1;
  const int64_t line = (4 * args.out + lanes - 1) / lanes * lanes;  // four channels of a row of outputs
  Scratch<A> image{4 * (args.height + 1) * pitch};                   // with its last row and column once more
  Scratch<A> samples{4 * longest};
  Scratch<int64_t> place{longest};
  Scratch<A> right{longest}, down{longest}, sums{line};
  int64_t packed = -1;

  static Pixel read(const A* p) {
    Pixel x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void write(A* p, const Pixel& x) { std::memcpy(p, &x, sizeof x); }

  static A value(T x) {
    if constexpr (std::is_same_v<T, uint8_t>) return A(x);
    else return to_float(x);
  }
  static T rounded(A x) {
    if constexpr (std::is_same_v<T, uint8_t>) return T(std::min(std::max(x, A(0)), A(255)) + A(0.5));
    else return from_float<T>(x);
  }

  // Channels 4 * group and the next three of image b; channels there are not repeat the first.
  void pack(int64_t b, int64_t group) {
    const T* plane[4];
    for (int64_t l = 0; l < 4; ++l) {
      const int64_t c = 4 * group + l < args.channels ? 4 * group + l : 4 * group;
      plane[l] = static_cast<const T*>(args.images) + b * args.stride_b + c * args.stride_c;
    }
    for (int64_t y = 0; y <= args.height; ++y) {
      const int64_t row = std::min(y, args.height - 1) * args.stride_h;
      A* to = image.data + 4 * y * pitch;
      const auto fill = [&](int64_t step) {
        for (int64_t x = 0; x < args.width; ++x) {
          const int64_t at = row + x * step;
          write(to + 4 * x, Pixel{value(plane[0][at]), value(plane[1][at]), value(plane[2][at]), value(plane[3][at])});
        }
      };
      args.stride_w == 1 ? fill(1) : fill(args.stride_w);
      write(to + 4 * args.width, read(to + 4 * (args.width - 1)));
    }
  }

  // The nearest point of the picture: a pixel, and how far on to the next. NaN is the first pixel.
  static double bounded(double x, double last) {
    x = x > 0 ? x : 0;
    return x < last ? x : last;
  }

  // Points of one upright row: (x, y) in pixels of the picture, and the step to the next.
  void sample(int64_t n, double x, double y, double dx, double dy) {
    const double last_x = double(args.width - 1), last_y = double(args.height - 1);
    for (int64_t i = 0; i < n; ++i) {
      const double px = bounded(x + double(i) * dx, last_x), py = bounded(y + double(i) * dy, last_y);
      const int32_t column = int32_t(px), row = int32_t(py);
      right[i] = A(px - double(column));
      down[i] = A(py - double(row));
      place[i] = 4 * (row * pitch + column);
    }
    for (int64_t i = 0; i < n; ++i) {
      const A *upper = image.data + place[i], *lower = upper + 4 * pitch;
      const Pixel above = read(upper) + right[i] * (read(upper + 4) - read(upper));
      const Pixel below = read(lower) + right[i] * (read(lower + 4) - read(lower));
      write(samples.data + 4 * i, above + down[i] * (below - above));
    }
  }

  void one(int64_t task, int64_t group) {
    double box[5];
    for (int64_t i = 0; i < 5; ++i)
      box[i] = args.double_boxes ? static_cast<const double*>(args.boxes)[task * 5 + i]
                                 : double(static_cast<const float*>(args.boxes)[task * 5 + i]);
    const double radians = box[0] * (3.14159265358979323846 / 180), cos = std::cos(radians), sin = std::sin(radians);
    const Axis rows(box[1], box[3], longest, args.out, args.cubic, args.antialias);
    const Axis columns(box[2], box[4], longest, args.out, args.cubic, args.antialias);

    Scratch<A> shrunk(rows.samples * line);
    for (int64_t r = 0; r < rows.samples; ++r) {
      const double y = rows.start + double(r) * rows.step;
      sample(
          columns.samples, cos * columns.start - sin * y + 0.5 * double(args.width - 1),
          sin * columns.start + cos * y + 0.5 * double(args.height - 1), cos * columns.step, sin * columns.step);
      for (int64_t i = 0; i < args.out; ++i) {
        const Taps t = columns.taps[i];
        const A* weight = columns.weights.data + i * columns.most;
        Pixel sum{};
        for (int64_t j = 0; j < t.count; ++j) sum += weight[j] * read(samples.data + 4 * (t.first + j));
        write(shrunk.data + r * line + 4 * i, sum);
      }
    }

    const int64_t live = std::min<int64_t>(4, args.channels - 4 * group), area = args.out * args.out;
    T* crop = static_cast<T*>(args.crops) + (task * args.channels + 4 * group) * area;
    for (int64_t i = 0; i < args.out; ++i) {
      const Taps t = rows.taps[i];
      const A* weight = rows.weights.data + i * rows.most;
      for (int64_t p = 0; p < line; p += lanes) {
        V<A> sum{};
        for (int64_t j = 0; j < t.count; ++j) sum += weight[j] * load<A>(shrunk.data + (t.first + j) * line + p);
        store<A>(sums.data + p, sum);
      }
      for (int64_t c = 0; c < live; ++c)
        for (int64_t k = 0; k < args.out; ++k) crop[c * area + i * args.out + k] = rounded(sums[4 * k + c]);
    }
  }

  void run(int64_t begin, int64_t end) {
    const int64_t groups = (args.channels + 3) / 4;
    for (int64_t task = begin; task < end; ++task)
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t key = task / args.count * groups + group;
        if (key != packed) pack(task / args.count, group);
        packed = key;
        one(task, group);
      }
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
