// Linear interpolation along the rows and the columns of a map, and its transpose.

// Output i lies between inputs first[i] and first[i] + 1 (the last one at most), share[i] of the way.
template <typename A>
struct MapAxis {
  int64_t n, out;
  Scratch<int32_t> first;
  Scratch<A> share;

  MapAxis(int64_t n, int64_t out, bool align_corners) : n(n), out(out), first(out), share(out) {
    const double step = out > 1 ? double(n - 1) / double(out - 1) : 0, scale = double(n) / double(out);
    for (int64_t i = 0; i < out; ++i) {
      const double at = align_corners ? double(i) * step : std::max((double(i) + 0.5) * scale - 0.5, 0.0);
      first[i] = int32_t(std::min(int64_t(at), n - 1));
      share[i] = A(at - double(first[i]));
    }
  }
  int64_t second(int64_t i) const { return std::min<int64_t>(first[i] + 1, n - 1); }
};

// Columns in blocks of one register.
template <typename A>
struct MapColumns : MapAxis<A> {
  using MapAxis<A>::n, MapAxis<A>::out, MapAxis<A>::first, MapAxis<A>::share, MapAxis<A>::second;
  using Bits = typename Vec<A>::bits;
  static constexpr int64_t lanes = lanes_of<A>;

  int64_t blocks, width;  // outputs in whole registers
  int64_t pitch;          // of a line of inputs: a register may be read from any of them
  Scratch<Bits> left, right;  // of each output: its inputs, counted from the first of its block
  Scratch<A> part;            // share, in whole registers
  // Transposed: input j takes from outputs begin[j] and the next ones, with weights [n][most].
  Scratch<int64_t> begin, count;
  int64_t most = 0;

  MapColumns(int64_t n, int64_t out, bool align_corners)
      : MapAxis<A>(n, out, align_corners), blocks((out + lanes - 1) / lanes), width(blocks * lanes), pitch(n + lanes),
        left(width), right(width), part(width), begin(n), count(n) {
    for (int64_t u = 0; u < out; ++u) {
      const int64_t base = first[u / lanes * lanes];
      left[u] = Bits(first[u] - base), right[u] = Bits(second(u) - base), part[u] = share[u];
      for (int64_t j = first[u]; j <= second(u); ++j) {
        if (count[j] == 0) begin[j] = u;
        count[j] = u + 1 - begin[j];
      }
    }
    for (int64_t j = 0; j < n; ++j) most = std::max(most, (count[j] + lanes - 1) / lanes * lanes);
  }

  // Whether all inputs of a block lie in one register.
  bool near(int64_t block) const {
    const int64_t u = block * lanes;
    return second(std::min(u + lanes, out) - 1) - first[u] < lanes;
  }

  V<A> up(const A* line, int64_t block) const {
    const int64_t u = block * lanes;
    const A* from = line + first[u];
    V<A> a, b;
    if (near(block)) {
      M<A> to_left, to_right;
      std::memcpy(&to_left, left.data + u, sizeof to_left);
      std::memcpy(&to_right, right.data + u, sizeof to_right);
      const V<A> x = load<A>(from);
      a = __builtin_shuffle(x, to_left), b = __builtin_shuffle(x, to_right);
    } else {
      for (int64_t l = 0; l < lanes; ++l) a[l] = from[left[u + l]], b[l] = from[right[u + l]];
    }
    return a + load<A>(part.data + u) * (b - a);
  }

  // Weights of the transpose, [n][most].
  void transposed(A* weights) const {
    for (int64_t u = 0; u < out; ++u) {
      weights[first[u] * most + u - begin[first[u]]] += 1 - share[u];
      weights[second(u) * most + u - begin[second(u)]] += share[u];
    }
  }

  // to[j] = what input j takes from a line of `width + most` outputs, those beyond the map 0.
  void down(const A* line, const A* weights, A* to) const {
    for (int64_t j = 0; j < n; ++j) {
      V<A> sum{};
      for (int64_t i = 0; i < count[j]; i += lanes) sum += load<A>(line + begin[j] + i) * load<A>(weights + j * most + i);
      to[j] = sum_lanes<A>(sum);
    }
  }
};
