// Upsampled logits against a class per pixel.

// Classes as codes: -1 where ignored, and beyond the map.
template <typename A>
struct ClassTargets {
  using Bits = typename Vec<A>::bits;
  const UpsampleCeArgs& args;

  // Returns how many pixels have a class, or the sum of their weights.
  template <typename I>
  double row(const I* from, Bits* codes) const {
    const int64_t width = args.width, step = args.stride_w, classes = args.logits.channels, ignored = args.ignore_index;
    int64_t count = 0, wrong = 0;
    const auto convert = [&](int64_t stride) {
      for (int64_t u = 0; u < width; ++u) {
        const int64_t t = int64_t(from[u * stride]);
        const bool counts = t != ignored, valid = uint64_t(t) < uint64_t(classes);
        wrong += counts && !valid;
        count += counts;
        codes[u] = counts && valid ? Bits(t) : Bits(-1);
      }
    };
    step == 1 ? convert(1) : convert(step);
    if (wrong) __atomic_store_n(args.out_of_range, true, __ATOMIC_RELAXED);
    if (!args.weight) return double(count);
    double sum = 0;
    for (int64_t u = 0; u < width; ++u)
      if (codes[u] >= 0) sum += double(static_cast<const A*>(args.weight)[codes[u]]);
    return sum;
  }

  double rows(int64_t b, int64_t v, int64_t count, int64_t pitch, Bits* codes) const {
    double sum = 0;
    const auto all = [&](auto type) {
      using I = decltype(type);
      for (int64_t i = 0; i < count; ++i, codes += pitch) {
        sum += row(static_cast<const I*>(args.target) + b * args.stride_b + (v + i) * args.stride_h, codes);
        std::fill(codes + args.width, codes + pitch, Bits(-1));
      }
    };
    switch (args.target_type) {
      case IntType::u8: all(uint8_t{}); break;
      case IntType::i16: all(int16_t{}); break;
      case IntType::i32: all(int32_t{}); break;
      case IntType::i64: all(int64_t{}); break;
    }
    return sum;
  }
};

// Two classes of equal weight.
template <typename A>
struct TwoClassPixels : BinaryPixels<A> {
  const ClassTargets<A> targets;

  void read(int64_t b, int64_t v, int64_t count, typename Vec<A>::bits* codes) {
    this->total += targets.rows(b, v, count, this->blocks * lanes_of<A>, codes);
  }
};

template <typename A>
struct ClassPixels {
  using Bits = typename Vec<A>::bits;
  static constexpr bool binary = false;
  static constexpr int64_t lanes = lanes_of<A>;

  const UpsampleCeArgs& args;
  const int64_t blocks;
  const int64_t channels = args.logits.channels;
  const bool backward = args.grad != nullptr, plain = !args.weight && args.label_smoothing == 0;
  const ClassTargets<A> targets{args};
  const A spread = A(args.label_smoothing / double(channels));  // of a class, times its weight
  Scratch<A> weights{channels}, numbers{channels * lanes};
  A together = 0;  // what the classes share of the smoothing
  double loss = 0, total = 0;

  ClassPixels(const UpsampleCeArgs& args, int64_t blocks) : args(args), blocks(blocks) {
    for (int64_t c = 0; c < channels; ++c) {
      weights[c] = args.weight ? static_cast<const A*>(args.weight)[c] : A(1);
      together += spread * weights[c];
    }
  }

  void read(int64_t b, int64_t v, int64_t count, Bits* codes) { total += targets.rows(b, v, count, blocks * lanes, codes); }

  template <bool PLAIN>
  V<A> pixels(V<A> share, V<A> by, M<A> code, const A* upper, const A* slope, A* sums, A* lower) const {
    A* number = numbers.data;
    const A own = A(1 - args.label_smoothing);
    V<A> top = splat<A>(-std::numeric_limits<A>::infinity()), chosen{}, weight{}, smooth{};
    for (int64_t c = 0; c < channels; ++c) {
      const V<A> z = load<A>(upper + c * lanes) + share * load<A>(slope + c * lanes);
      const M<A> is = code == Bits(c);
      chosen = select<A>(is, z, chosen);
      if constexpr (sizeof(A) == 4) top = larger(top, z);
      else top = select<A>(z > top, z, top);
      if constexpr (!PLAIN) {
        weight = select<A>(is, splat<A>(own * weights[c]), weight);
        smooth += splat<A>(spread * weights[c]) * z;
      }
      store<A>(number + c * lanes, z);
    }
    V<A> sum{};
    for (int64_t c = 0; c < channels; ++c) {
      const V<A> e = exp_v<A>(load<A>(number + c * lanes) - top);
      store<A>(number + c * lanes, e);
      sum += e;
    }
    const M<A> counts = code >= M<A>{};
    if constexpr (PLAIN) weight = select<A>(counts, splat<A>(A(1)), V<A>{});
    const V<A> log_sum = top + log_one_plus<A>(sum - splat<A>(A(1)));
    V<A> cost = weight * (log_sum - chosen), all = weight;
    if constexpr (!PLAIN) {
      cost += splat<A>(together) * log_sum - smooth;
      all += splat<A>(together);
    }
    if (backward) {
      const V<A> live = select<A>(counts, by, V<A>{}), scale = live * all / sum, mine = live * weight;
      for (int64_t c = 0; c < channels; ++c) {
        V<A> g = load<A>(number + c * lanes) * scale;
        g -= select<A>(code == Bits(c), mine, V<A>{});
        if constexpr (!PLAIN) g -= splat<A>(spread * weights[c]) * live;
        store<A>(sums + c * lanes, load<A>(sums + c * lanes) + g);
        store<A>(lower + c * lanes, load<A>(lower + c * lanes) + share * g);
      }
    }
    return select<A>(counts, cost, V<A>{});
  }

  void block(
      const MapRows<A>& rows, int64_t b, int64_t v, int64_t block, const A* upper, const A* slope, const Bits* codes, A* sums,
      A* lower) {
    const int64_t live = std::min(lanes, args.width - block * lanes);
    V<A> found{};
    for (int64_t i = 0; i < rows.count; ++i, codes += blocks * lanes) {
      const int64_t at = (b * args.height + v + i) * args.width + block * lanes;
      M<A> code;
      std::memcpy(&code, codes, sizeof code);
      V<A> by = splat<A>(A(1));
      if (args.grad_pixels) by = load_up_to(static_cast<const A*>(args.grad_pixels) + at, live);
      const V<A> share = splat<A>(rows.share[i]);
      const V<A> cost = plain ? pixels<true>(share, by, code, upper, slope, sums, lower)
                              : pixels<false>(share, by, code, upper, slope, sums, lower);
      if (args.per_pixel) store_up_to(static_cast<A*>(args.loss) + at, cost, live);
      else found += cost;
    }
    loss += double(sum_lanes<A>(found));
  }
};

inline void upsample_ce_cpu(const UpsampleCeArgs& args, const Parallel& parallel) {
  with_type(args.logits.dtype, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const SmallMaps& x = args.logits;
    const bool two = x.channels == 2 && !args.weight && args.label_smoothing == 0 && !args.per_pixel && !args.grad_pixels;
    const int64_t channels = two ? 1 : x.channels;
    const MapPlan<A> plan(x, args.height, args.width, channels, args.align_corners);
    Scratch<double> sums(2 * x.batch * plan.bands);
    if (two) {
      // The gradient of the difference of two logits: that of the second, and minus that of the first.
      const int64_t size = x.height * x.width;
      Scratch<A> grad(args.grad ? x.batch * size : 0);
      walk_maps<T>(x, plan, 1, args.grad ? grad.data : nullptr, sums.data, parallel, [&] {
        return TwoClassPixels<A>{{args.width, plan.columns.blocks, args.grad != nullptr, true}, {args}};
      });
      for (int64_t i = 0; args.grad && i < x.batch * size; ++i) {
        A* to = static_cast<A*>(args.grad) + i / size * 2 * size + i % size;
        to[0] = -grad[i], to[size] = grad[i];
      }
    } else {
      walk_maps<T>(x, plan, channels, static_cast<A*>(args.grad), sums.data, parallel, [&] {
        return ClassPixels<A>(args, plan.columns.blocks);
      });
    }
    if (args.loss && !args.per_pixel) add_sums<A>(sums.data, x.batch, plan.bands, 0, args.loss);
    if (args.total) add_sums<A>(sums.data, x.batch, plan.bands, 1, args.total);
  });
}
