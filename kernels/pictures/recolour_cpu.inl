// Colours of whole pictures changed, each picture by itself: see NOTES.md.
//
// A picture is worked on in floats, in rows of whole vectors. Behind a row lie zeros, which every change before the contrast leaves zero.

template <typename T>
struct Recolour {
  static constexpr bool bytes = std::is_same_v<T, uint8_t>;
  using A = Acc<T>;
  using Out = std::conditional_t<bytes, float, T>;
  static constexpr int64_t lanes = lanes_of<A>;
  static constexpr double gray[3] = {0.299, 0.587, 0.114};  // of ITU-R 601
  enum Change : int64_t { brightness, contrast, saturation, hue };

  const RecolourArgs& args;
  const int64_t pitch = whole_vectors(args.width, lanes), plane = args.height * pitch;
  Scratch<A> first{3 * plane, uncleared}, second{3 * plane, uncleared};
  A *x = first.data, *other = second.data;  // the picture, and room for the next
  // For the blur: weights of distances from -reach to reach, and what the sums of those inside the picture are divided by.
  const int64_t farthest = std::max(args.height, args.width) - 1;
  Scratch<A> weights{2 * farthest + 1, uncleared}, down{args.height, uncleared}, along{pitch};
  Scratch<A> line{pitch + 2 * farthest + lanes, uncleared};

  static V<A> least(V<A> a, V<A> b) {
    if constexpr (sizeof(A) == 4) return smaller(a, b);
    else return select<A>(a < b, a, b);
  }
  static V<A> most(V<A> a, V<A> b) {
    if constexpr (sizeof(A) == 4) return larger(a, b);
    else return select<A>(a > b, a, b);
  }
  static V<A> held(V<A> v) { return least(most(v, V<A>{}), splat<A>(A(1))); }
  static V<A> gray_of(V<A> r, V<A> g, V<A> b) { return A(gray[0]) * r + A(gray[1]) * g + A(gray[2]) * b; }

  // f(r, g, b) changes the three colours of a vector of pixels.
  template <typename F>
  void each(F&& f) const {
    for (int64_t i = 0; i < plane; i += lanes) {
      V<A> r = load<A>(x + i), g = load<A>(x + plane + i), b = load<A>(x + 2 * plane + i);
      f(r, g, b);
      store<A>(x + i, r), store<A>(x + plane + i, g), store<A>(x + 2 * plane + i, b);
    }
  }

  // ---------------------------------------------------------------------------------------- in and out

  void read(const T* from) const {
    for (int64_t row = 0; row < 3 * args.height; ++row, from += args.width) {
      A* to = x + row * pitch;
      if constexpr (bytes) {
        for (int64_t i = 0; i < args.width; ++i) to[i] = A(from[i]) * A(1.0 / 255);
        for (int64_t i = args.width; i < pitch; ++i) to[i] = 0;
      } else {
        int64_t i = 0;
        for (; i + lanes <= args.width; i += lanes) store<A>(to + i, held(load<T>(from + i)));
        if (i < args.width) store<A>(to + i, held(load_part<T>(from + i, args.width - i, A(0))));
      }
    }
  }

  void write(Out* to) const {
    for (int64_t row = 0; row < 3 * args.height; ++row, to += args.width) {
      const V<A> scale = splat<A>(A(args.scale[row / args.height])), shift = splat<A>(A(args.shift[row / args.height]));
      const A* from = x + row * pitch;
      int64_t i = 0;
      for (; i + lanes <= args.width; i += lanes) store<Out>(to + i, load<A>(from + i) * scale + shift);
      if (i < args.width) store_part<Out>(to + i, load<A>(from + i) * scale + shift, args.width - i);
    }
  }

  // Both at once, where nothing changes in between.
  void write_bytes(const uint8_t* from, float* to) const {
    const int64_t n = args.height * args.width;
    for (int64_t c = 0; c < 3; ++c, from += n, to += n) {
      const float scale = float(args.scale[c] / 255), shift = float(args.shift[c]);
      const uint8_t* __restrict p = from;
      float* __restrict q = to;
      for (int64_t i = 0; i < n; ++i) q[i] = float(p[i]) * scale + shift;
    }
  }

  // ---------------------------------------------------------------------------------------- changes

  void brighten(A factor) const {
    each([&](V<A>& r, V<A>& g, V<A>& b) { r = held(r * factor), g = held(g * factor), b = held(b * factor); });
  }

  void change_contrast(A factor) const {
    double sum = 0;
    for (int64_t row = 0; row < plane; row += pitch) {
      V<A> of_row{};
      for (int64_t i = row; i < row + pitch; i += lanes)
        of_row += gray_of(load<A>(x + i), load<A>(x + plane + i), load<A>(x + 2 * plane + i));
      sum += double(sum_lanes<A>(of_row));
    }
    const V<A> base = splat<A>((1 - factor) * A(sum / double(args.height * args.width)));
    each([&](V<A>& r, V<A>& g, V<A>& b) { r = held(r * factor + base), g = held(g * factor + base), b = held(b * factor + base); });
  }

  void saturate(A factor) const {
    each([&](V<A>& r, V<A>& g, V<A>& b) {
      const V<A> base = gray_of(r, g, b) * (1 - factor);
      r = held(r * factor + base), g = held(g * factor + base), b = held(b * factor + base);
    });
  }

  // Hue in sixths of the circle: each colour is as far below the highest as it lies away from the hue.
  void turn_hue(double turn) const {
    const A sixths = A(6 * (turn - std::floor(turn)));
    const V<A> six = splat<A>(A(6)), none{};
    each([&](V<A>& r, V<A>& g, V<A>& b) {
      const V<A> high = most(most(r, g), b), chroma = high - least(least(r, g), b);
      const auto is_red = r == high, is_green = g == high;
      const V<A> ahead = select<A>(is_red, g - b, select<A>(is_green, b - r, r - g));
      const V<A> from = select<A>(is_red, none, select<A>(is_green, splat<A>(A(2)), splat<A>(A(4))));
      V<A> h = ahead / most(chroma, splat<A>(A(1e-12))) + from + sixths;
      h = select<A>(h < none, h + six, select<A>(h >= six, h - six, h));
      const auto below = [&](A place) {
        V<A> away = h + place;
        away = select<A>(away >= six, away - six, away) - A(3);
        away = held(most(away, -away) - A(1));
        return held(high - away * chroma);
      };
      r = below(A(3)), g = below(A(1)), b = below(A(5));
    });
  }

  void make_gray() const {
    each([&](V<A>& r, V<A>& g, V<A>& b) { r = g = b = gray_of(r, g, b); });
  }

  void solarize() const {
    each([&](V<A>& r, V<A>& g, V<A>& b) { r = least(r, A(1) - r), g = least(g, A(1) - g), b = least(b, A(1) - b); });
  }

  // One over the sum of the weights that lie inside.
  void norms(int64_t n, int64_t reach, A* to) const {
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int64_t d = std::max(-reach, -i); d <= std::min(reach, n - 1 - i); ++d) sum += double(weights[d + reach]);
      to[i] = A(1 / sum);
    }
  }

  template <int64_t N>
  static void weighted(const A* from, int64_t step, const A* weight, int64_t count, V<A> (&sum)[N]) {
    for (V<A>& s : sum) s = V<A>{};
    for (int64_t k = 0; k < count; ++k)
      for (int64_t n = 0; n < N; ++n) sum[n] += weight[k] * load<A>(from + k * step + n * lanes);
  }

  // A row of sums over rows, then over columns of these, between zeros.
  template <int64_t N>
  void blur_down(const A* from, int64_t count, const A* weight, A norm, A* to, int64_t& i) const {
    for (V<A> sum[N]; i + N * lanes <= pitch; i += N * lanes) {
      weighted<N>(from + i, pitch, weight, count, sum);
      for (int64_t n = 0; n < N; ++n) store<A>(to + i + n * lanes, sum[n] * norm);
    }
  }
  template <int64_t N>
  void blur_along(int64_t count, A* to, int64_t& i) const {
    for (V<A> sum[N]; i + N * lanes <= pitch; i += N * lanes) {
      weighted<N>(line.data + i, 1, weights.data, count, sum);
      for (int64_t n = 0; n < N; ++n) store<A>(to + i + n * lanes, held(sum[n] * load<A>(along.data + i + n * lanes)));
    }
  }

  void blur(double sigma) {
    const int64_t reach = int64_t(std::min(6 * sigma, double(farthest)));
    for (int64_t d = -reach; d <= reach; ++d) weights[d + reach] = A(std::exp(-0.5 * (double(d) / sigma) * (double(d) / sigma)));
    norms(args.height, reach, down.data), norms(args.width, reach, along.data);
    A* inner = line.data + reach;
    std::fill(line.data, inner, A(0));
    for (int64_t row = 0; row < 3 * args.height; ++row) {
      const int64_t y = row % args.height, above = std::min(reach, y), below = std::min(reach, args.height - 1 - y);
      const A *from = x + (row - above) * pitch, *weight = weights.data + reach - above;
      int64_t i = 0;
      blur_down<4>(from, above + below + 1, weight, down[y], inner, i);
      blur_down<1>(from, above + below + 1, weight, down[y], inner, i);
      std::fill(inner + args.width, inner + pitch + reach, A(0));
      i = 0;
      blur_along<4>(2 * reach + 1, other + row * pitch, i);
      blur_along<1>(2 * reach + 1, other + row * pitch, i);
    }
    std::swap(x, other);
  }

  void change(int64_t n) {
    const double* factor = args.factors ? args.factors + 4 * n : nullptr;
    for (int64_t place = 0; factor && place < 4; ++place) {
      const int64_t kind = args.order[4 * n + place];
      if (kind < 0 || kind > 3 || factor[kind] == (kind == hue ? 0.0 : 1.0)) continue;
      if (kind == brightness) brighten(A(factor[kind]));
      if (kind == contrast) change_contrast(A(factor[kind]));
      if (kind == saturation) saturate(A(factor[kind]));
      if (kind == hue) turn_hue(factor[kind]);
    }
    const double* finish = args.finish ? args.finish + 3 * n : nullptr;
    if (finish && finish[0] != 0) make_gray();
    if (finish && finish[1] > 0) blur(finish[1]);
    if (finish && finish[2] != 0) solarize();
  }

  void run(int64_t begin, int64_t end) {
    const int64_t size = 3 * args.height * args.width;
    for (int64_t n = begin; n < end; ++n) {
      const T* from = static_cast<const T*>(args.pictures) + n * size;
      Out* to = static_cast<Out*>(args.out) + n * size;
      if constexpr (bytes) {
        if (!args.factors && !args.finish) {
          write_bytes(from, to);
          continue;
        }
      }
      read(from), change(n), write(to);
    }
  }
};

inline void recolour_cpu(const RecolourArgs& args, const Parallel& parallel) {
  const auto recolour = [&](auto type) {
    for_tasks(parallel, args.count, args.count * 3 * args.height * args.width, [&](int64_t begin, int64_t end) {
      Recolour<decltype(type)>{args}.run(begin, end);
    });
  };
  if (args.bytes)
    recolour(uint8_t{});
  else
    with_type(args.dtype, recolour);
}
