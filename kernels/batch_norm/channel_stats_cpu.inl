// Mean, biased variance, zero count and dead-sample count per channel in one read of the activation.
//
// Cost model: the bytes of x once (plus 32 bytes per channel and block); bandwidth-bound at about 20 instructions per
// register of values. Rows keep their sums in registers, lanes in the first cache; both read memory in order.

// With few channels, one task per channel would leave cores idle: cut each channel's samples too.
inline int64_t parts_per_channel(const Activation& a) {
  return std::clamp<int64_t>(32 / std::max<int64_t>(a.channels, 1), 1, std::max<int64_t>(a.samples, 1));
}

template <bool COUNT, typename T, typename Done>
inline void row_stats(const Activation& a, const T* x, typename Vec<Acc<T>>::bits limit, const Parallel& parallel, Done&& done) {
  const int64_t parts = parts_per_channel(a);
  Scratch<ChannelSums> sums(a.channels * parts);  // [parts, C]
  if (parts == 1) {
    for_tasks(parallel, a.channels, a.numel(), [&](int64_t begin, int64_t end) {
      reduce_rows<COUNT>(x, a, begin, end, 0, a.samples, limit, sums.data + begin);
    });
  } else {
    for_tasks(parallel, parts, a.numel(), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        reduce_rows<COUNT>(
            x, a, 0, a.channels, a.samples * p / parts, a.samples * (p + 1) / parts, limit, sums.data + p * a.channels);
    });
  }
  for (int64_t c = 0; c < a.channels; ++c) {
    ChannelSums total;
    for (int64_t p = 0; p < parts; ++p) {
      const ChannelSums& part = sums[p * a.channels + c];
      total.moments.merge(part.moments);
      total.zeros += part.zeros;
      total.dead += part.dead;
    }
    done(c, total);
  }
}

// Sums of one block of positions, all channels at once: the rows of x are read in order and the sums, a few kilobytes,
// stay in the first cache. Sixteen positions are added in registers first, so chains of float additions stay short.
template <typename A>
struct LaneSums {
  using B = typename Vec<A>::bits;
  int64_t padded;
  Scratch<A> shift, sum, squares;
  Scratch<B> here, zeros, dead;

  explicit LaneSums(int64_t channels)
      : padded((channels + lanes_of<A> - 1) / lanes_of<A> * lanes_of<A>),
        shift(padded), sum(padded), squares(padded), here(padded), zeros(padded), dead(padded) {}

  template <typename X>
  static void clear(Scratch<X>& values, int64_t n) {
    std::memset(values.data, 0, size_t(n) * sizeof(X));
  }
  void reset() {
    for (Scratch<A>* values : {&shift, &sum, &squares}) clear(*values, padded);
    for (Scratch<B>* values : {&here, &zeros, &dead}) clear(*values, padded);
  }
};

template <typename A>
inline M<A> load_bits(const typename Vec<A>::bits* p) {
  M<A> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename A>
inline void store_bits(typename Vec<A>::bits* p, M<A> v) {
  std::memcpy(p, &v, sizeof v);
}

// P neighbouring positions of U registers of channels, summed in registers, then added to the sums.
template <bool COUNT, int P, int U, typename T, typename Load>
[[gnu::always_inline]] inline void add_tile(
    const T* x, int64_t c, int64_t j, typename Vec<Acc<T>>::bits limit, LaneSums<Acc<T>>& l, Load&& get) {
  using A = Acc<T>;
  constexpr int64_t lanes = lanes_of<A>;
  V<A> shift[U], s[U] = {}, q[U] = {};
  M<A> z[U] = {};
  const int64_t ahead = P * c * int64_t(sizeof(T));  // this strip of the next P positions
  for (int u = 0; u < U; ++u) shift[u] = load(l.shift.data + j + u * lanes);
  for (int p = 0; p < P; ++p, x += c)
    for (int u = 0; u < U; ++u) {
      prefetch(x + j + u * lanes, ahead);
      const V<A> v = get(x + j + u * lanes), d = v - shift[u];
      s[u] += d;
      q[u] += d * d;
      if constexpr (COUNT) z[u] = at_most<A>(v, limit) ? z[u] + 1 : z[u];
    }
  for (int u = 0; u < U; ++u) {
    A *sum = l.sum.data + j + u * lanes, *squares = l.squares.data + j + u * lanes;
    store(sum, load(sum) + s[u]);
    store(squares, load(squares) + q[u]);
    auto* here = l.here.data + j + u * lanes;
    if constexpr (COUNT) store_bits<A>(here, load_bits<A>(here) + z[u]);
  }
}

template <bool COUNT, int P, typename T>
inline void add_positions(const T* x, int64_t c, typename Vec<Acc<T>>::bits limit, LaneSums<Acc<T>>& l) {
  using A = Acc<T>;
  constexpr int64_t lanes = lanes_of<A>;
  constexpr int U = AVFAST_VECTOR_BYTES == 64 ? 4 : 2;
  const auto whole = [](const T* p) { return load(p); };
  int64_t j = 0;
  for (; j + U * lanes <= c; j += U * lanes) add_tile<COUNT, P, U>(x, c, j, limit, l, whole);
  for (; j + lanes <= c; j += lanes) add_tile<COUNT, P, 1>(x, c, j, limit, l, whole);
  if (const int64_t n = c - j; n > 0)
    add_tile<COUNT, P, 1>(x, c, j, limit, l, [n](const T* p) { return load_part(p, n, A(0)); });
}

template <bool COUNT, typename T>
inline void add_run(const T* x, int64_t positions, int64_t c, typename Vec<Acc<T>>::bits limit, LaneSums<Acc<T>>& l) {
  int64_t s = 0;
  for (; s + 16 <= positions; s += 16) add_positions<COUNT, 16>(x + s * c, c, limit, l);
  for (; s + 4 <= positions; s += 4) add_positions<COUNT, 4>(x + s * c, c, limit, l);
  for (; s < positions; ++s) add_positions<COUNT, 1>(x + s * c, c, limit, l);
}

template <bool COUNT, typename T>
inline void lane_block_stats(
    const Activation& a, const T* x, const LaneBlocks& blocks, int64_t block, typename Vec<Acc<T>>::bits limit,
    LaneSums<Acc<T>>& l, ChannelSums* out) {
  using A = Acc<T>;
  const int64_t c = a.channels;
  int64_t first, last, begin, end;
  blocks.range(a, block, &first, &last, &begin, &end);
  const T* start = x + (first * a.positions + begin) * c;
  const int64_t positions = end - begin, total = (last - first) * positions, lead = std::min<int64_t>(total, 8);
  l.reset();
  for_lanes<A>(c, [&](int64_t j, int64_t n) {  // the mean of the first few positions, unless it is not a number
    V<A> mean = {};
    for (int64_t s = 0; s < lead; ++s) mean += load_n(start + s * c + j, n);
    mean /= A(lead);
    const M<A> finite = magnitude_bits<A>(mean) < (M<A>)splat(std::numeric_limits<A>::infinity());
    store(l.shift.data + j, select<A>(finite, mean, V<A>{}));
  });
  const bool position_is_sample = a.positions == 1;
  if (position_is_sample) {
    add_run<COUNT>(start, total, c, limit, l);
    std::swap(l.here.data, l.zeros.data);
  } else {
    for (int64_t sample = first; sample < last; ++sample) {
      add_run<COUNT>(x + (sample * a.positions + begin) * c, positions, c, limit, l);
      if constexpr (COUNT) {
        for (int64_t j = 0; j < c; ++j) {
          l.zeros[j] += l.here[j];
          l.dead[j] += l.here[j] == typename Vec<A>::bits(a.positions);
          l.here[j] = 0;
        }
      }
    }
  }
  for (int64_t j = 0; j < c; ++j) {
    out[j] = {};
    out[j].moments.add(double(total), double(l.shift[j]), double(l.sum[j]), double(l.squares[j]));
    out[j].zeros = l.zeros[j];
    out[j].dead = position_is_sample ? l.zeros[j] : l.dead[j];
  }
}

template <bool COUNT, typename T, typename Done>
inline void lane_stats(const Activation& a, const T* x, typename Vec<Acc<T>>::bits limit, const Parallel& parallel, Done&& done) {
  const LaneBlocks blocks(a);
  const int64_t c = a.channels;
  Scratch<ChannelSums> sums(blocks.count * c);
  for_tasks(parallel, blocks.count, a.numel(), [&](int64_t begin, int64_t end) {
    LaneSums<Acc<T>> scratch(c);
    for (int64_t b = begin; b < end; ++b) lane_block_stats<COUNT>(a, x, blocks, b, limit, scratch, sums.data + b * c);
  });
  const int64_t split = blocks.blocks_per_sample;
  for (int64_t j = 0; j < c; ++j) {
    ChannelSums total;
    int64_t in_sample = 0;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const ChannelSums& part = sums[b * c + j];
      total.moments.merge(part.moments);
      total.zeros += part.zeros;
      if (split == 1) {
        total.dead += part.dead;
      } else {  // a sample spans `split` blocks: dead if all of them together are zero
        in_sample += part.zeros;
        if (b % split == split - 1) {
          total.dead += COUNT && in_sample == a.positions;
          in_sample = 0;
        }
      }
    }
    done(j, total);
  }
}

template <bool COUNT, typename T, typename Done>
inline void all_channel_stats(const Activation& a, const T* x, Acc<T> threshold, const Parallel& parallel, Done&& done) {
  const auto limit = std::bit_cast<typename Vec<Acc<T>>::bits>(threshold);
  if (a.order == Activation::rows) row_stats<COUNT>(a, x, limit, parallel, done);
  else lane_stats<COUNT>(a, x, limit, parallel, done);
}

inline void channel_stats_cpu(const ChannelStatsArgs& args, const Parallel& parallel) {
  with_type(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    all_channel_stats<true>(
        args.x, static_cast<const T*>(args.data), Acc<T>(args.dead_threshold), parallel,
        [&](int64_t c, const ChannelSums& sums) {
          args.mean[c] = sums.moments.average();
          args.var[c] = sums.moments.var();
          args.zeros[c] = sums.zeros;
          args.dead[c] = sums.dead;
        });
  });
}
