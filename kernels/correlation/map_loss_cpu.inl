// Upsampled maps against rotated boxes, or masks in their place.

// Columns of a row of pixels that lie in a box: an interval, as a box is convex. A coordinate is monotonous along a row even as it is
// rounded, so the interval's ends are where the test of a single pixel changes, whatever first guess of them is made.
struct BoxRows {
  const BoxBceArgs& args;
  const double step_x = args.source_size / double(args.width), step_y = args.source_size / double(args.height);
  Scratch<double> along{args.width}, against{args.width};  // cos X and sin X of each column
  double cos = 0, sin = 0, top = 0, left = 0, bottom = 0, right = 0;
  int64_t map = -1;

  explicit BoxRows(const BoxBceArgs& args) : args(args) {}

  // Rounded as such: pixels on an edge would else depend on whether the instruction set multiplies and adds at once.
  static double product(double a, double b) { return __builtin_assoc_barrier(a * b); }
  double centre(int64_t i, double step) const { return product(double(i) + 0.5, step) - args.source_size / 2; }

  void read(int64_t m) {
    if (m == map) return;
    map = m;
    double box[5];
    for (int64_t i = 0; i < 5; ++i)
      box[i] = args.double_boxes ? static_cast<const double*>(args.boxes)[m * 5 + i]
                                 : double(static_cast<const float*>(args.boxes)[m * 5 + i]);
    const double turn = box[0] * (3.14159265358979323846 / 180);
    cos = std::cos(turn), sin = std::sin(turn);
    top = box[1] + args.shrink, left = box[2] + args.shrink, bottom = box[3] - args.shrink, right = box[4] - args.shrink;
    for (int64_t u = 0; u < args.width; ++u) {
      const double x = centre(u, step_x);
      along[u] = product(cos, x), against[u] = product(sin, x);
    }
  }

  // The first column from which on `holds`, near `guess`.
  template <typename F>
  int64_t first(double guess, F&& holds) const {
    int64_t u = guess > 0 ? int64_t(std::min(guess, double(args.width))) : 0;
    while (u > 0 && holds(u - 1)) --u;
    while (u < args.width && !holds(u)) ++u;
    return u;
  }

  // Narrows [begin, end) to where low <= value(u) < high; value grows by about `rate` from column to column.
  template <typename F>
  void narrow(double rate, double low, double high, F&& value, int64_t& begin, int64_t& end) const {
    const double at = value(0), scale = 1 / rate;
    const auto reached = [&](int64_t u) { return value(u) >= low; };
    const auto below = [&](int64_t u) { return value(u) < high; };
    if (rate > 0) {
      begin = std::max(begin, first((low - at) * scale, reached));
      end = std::min(end, first((high - at) * scale, [&](int64_t u) { return !below(u); }));
    } else if (rate < 0) {
      begin = std::max(begin, first((high - at) * scale, below));
      end = std::min(end, first((low - at) * scale, [&](int64_t u) { return !reached(u); }));
    } else if (!(reached(0) && below(0))) {
      end = begin;
    }
  }

  void interval(int64_t v, int64_t& begin, int64_t& end) const {
    const double y = centre(v, step_y), across = product(sin, y), down = product(cos, y);
    begin = 0, end = args.width;
    narrow(cos * step_x, left, right, [&](int64_t u) { return along[u] + across; }, begin, end);
    narrow(-sin * step_x, top, bottom, [&](int64_t u) { return down - against[u]; }, begin, end);
    end = std::max(begin, end);
  }
};

template <typename A>
struct BoxPixels : BinaryPixels<A> {
  using Bits = typename Vec<A>::bits;
  const BoxBceArgs& args;
  BoxRows rows;

  BoxPixels(const BoxBceArgs& args, int64_t blocks)
      : BinaryPixels<A>{args.width, blocks, args.grad != nullptr, false}, args(args), rows(args) {}

  void read(int64_t m, int64_t v, int64_t count, Bits* codes) {
    const int64_t width = args.width, pitch = this->blocks * lanes_of<A>;
    if (!args.mask) rows.read(m);
    for (int64_t i = 0; i < count; ++i, codes += pitch) {
      if (args.mask) {
        const uint8_t* row = args.mask + (m * args.height + v + i) * width;
        for (int64_t u = 0; u < width; ++u) codes[u] = row[u] != 0;
      } else {
        int64_t begin, end;
        rows.interval(v + i, begin, end);
        std::fill(codes, codes + begin, Bits(0));
        std::fill(codes + begin, codes + end, Bits(1));
        std::fill(codes + end, codes + width, Bits(0));
      }
      std::fill(codes + width, codes + pitch, Bits(-1));
    }
  }
};

inline void box_bce_cpu(const BoxBceArgs& args, const Parallel& parallel) {
  with_type(args.logits.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const MapPlan<A> plan(args.logits, args.height, args.width, 1, args.align_corners);
    Scratch<double> sums(2 * args.logits.batch * plan.bands);
    walk_maps<T>(args.logits, plan, 1, static_cast<A*>(args.grad), sums.data, parallel, [&] {
      return BoxPixels<A>(args, plan.columns.blocks);
    });
    add_sums<A>(sums.data, args.logits.batch, plan.bands, 0, args.loss);
  });
}
