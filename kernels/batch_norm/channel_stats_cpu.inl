// Mean, biased variance, zero count and dead-sample count per channel in one read of the activation.
//
// Cost model: the bytes of x once (plus 32 bytes per channel and block); bandwidth-bound at about 20 instructions per
// register of values. Rows keep their sums in registers; lanes keep one register of channels over eight positions.

// With few channels, one task per channel would leave cores idle: cut each channel's samples too.
inline int64_t parts_per_channel(const Activation& a) {
  return std::clamp<int64_t>(32 / std::max<int64_t>(a.channels, 1), 1, std::max<int64_t>(a.samples, 1));
}

template <bool COUNT, typename T, typename Done>
inline void row_stats(const Activation& a, const T* x, typename Vec<Acc<T>>::bits limit, const Parallel& parallel, Done&& done) {
  const int64_t parts = parts_per_channel(a);
  if (parts == 1) {
    for_tasks(parallel, a.channels, a.numel(), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) done(c, reduce_rows<COUNT>(x, a, c, 0, a.samples, limit));
    });
    return;
  }
  Scratch<ChannelSums> sums(a.channels * parts);
  for_tasks(parallel, a.channels * parts, a.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t p = t % parts;
      sums[t] = reduce_rows<COUNT>(x, a, t / parts, a.samples * p / parts, a.samples * (p + 1) / parts, limit);
    }
  });
  for (int64_t c = 0; c < a.channels; ++c) {
    ChannelSums total;
    for (int64_t p = 0; p < parts; ++p) {
      const ChannelSums& part = sums[c * parts + p];
      total.moments.merge(part.moments);
      total.zeros += part.zeros;
      total.dead += part.dead;
    }
    done(c, total);
  }
}

// Running sums of U registers of channels. Sums are flushed from `near` to `far` every few positions: two short chains of
// float additions instead of one long one, so that a channel's sum loses less than its own last bit.
template <typename A, int U>
struct LaneSums {
  V<A> shift[U], near_sum[U] = {}, near_squares[U] = {}, far_sum[U] = {}, far_squares[U] = {};
  M<A> zeros[U] = {}, dead[U] = {}, here[U] = {};

  void flush() {
    for (int u = 0; u < U; ++u) {
      far_sum[u] += near_sum[u];
      far_squares[u] += near_squares[u];
      near_sum[u] = near_squares[u] = V<A>{};
    }
  }
};

constexpr int64_t lane_flush_positions = 16;

// One strip of channels over one block; get(p, u) loads register u of the strip at position p.
template <bool COUNT, int U, typename T, typename Get>
inline void lane_strip_stats(
    const Activation& a, const T* x, const LaneBlocks& blocks, int64_t block, typename Vec<Acc<T>>::bits limit, Get&& get,
    LaneSums<Acc<T>, U>* sums) {
  using A = Acc<T>;
  const int64_t c = a.channels;
  int64_t first, last, begin, end;
  blocks.range(a, block, &first, &last, &begin, &end);
  const int64_t positions = end - begin, lead = std::min<int64_t>((last - first) * positions, 8);
  LaneSums<A, U> l;
  for (int u = 0; u < U; ++u) {  // the mean of the first few positions, unless it is not a number
    V<A> mean = {};
    for (int64_t s = 0; s < lead; ++s) mean += get(x + (first * a.positions + begin + s) * c, u);
    mean /= A(lead);
    l.shift[u] = select<A>(magnitude_bits<A>(mean) < (M<A>)splat(std::numeric_limits<A>::infinity()), mean, V<A>{});
  }
  for (int64_t sample = first; sample < last; ++sample) {
    const T* p = x + (sample * a.positions + begin) * c;
    for (int64_t s = 0; s < positions; s += lane_flush_positions) {
      const int64_t stop = std::min(positions, s + lane_flush_positions);
      for (int64_t i = s; i < stop; ++i, p += c)
        for (int u = 0; u < U; ++u) {
          const V<A> v = get(p, u), d = v - l.shift[u];
          l.near_sum[u] += d;
          l.near_squares[u] += d * d;
          if constexpr (COUNT) l.here[u] -= at_most<A>(v, limit);
        }
      if (positions > 1 || (sample & (lane_flush_positions - 1)) == 0) l.flush();
    }
    if constexpr (COUNT)
      for (int u = 0; u < U; ++u) {
        l.zeros[u] += l.here[u];
        l.dead[u] -= l.here[u] == typename Vec<A>::bits(a.positions);
        l.here[u] = M<A>{};
      }
  }
  l.flush();
  *sums = l;
}

template <bool COUNT, typename T>
inline void lane_block_stats(
    const Activation& a, const T* x, const LaneBlocks& blocks, int64_t block, typename Vec<Acc<T>>::bits limit,
    ChannelSums* out) {
  using A = Acc<T>;
  constexpr int64_t lanes = lanes_of<A>;
  constexpr int U = AVFAST_VECTOR_BYTES == 64 ? 4 : 2;
  int64_t first, last, begin, end;
  blocks.range(a, block, &first, &last, &begin, &end);
  const double count = double((last - first) * (end - begin));
  auto write = [&](int64_t channel, V<A> shift, V<A> sum, V<A> squares, M<A> zeros, M<A> dead, int64_t n) {
    for (int64_t k = 0; k < n; ++k) {
      ChannelSums& o = out[channel + k];
      o = {};
      o.moments.add(count, double(shift[k]), double(sum[k]), double(squares[k]));
      o.zeros = zeros[k];
      o.dead = dead[k];
    }
  };
  int64_t j = 0;
  for (; j + U * lanes <= a.channels; j += U * lanes) {
    LaneSums<A, U> l;
    lane_strip_stats<COUNT, U>(a, x + j, blocks, block, limit, [](const T* p, int u) { return load(p + u * lanes); }, &l);
    for (int u = 0; u < U; ++u)
      write(j + u * lanes, l.shift[u], l.far_sum[u], l.far_squares[u], l.zeros[u], l.dead[u], lanes);
  }
  for (; j < a.channels; j += lanes) {
    const int64_t n = std::min(lanes, a.channels - j);
    LaneSums<A, 1> l;
    lane_strip_stats<COUNT, 1>(a, x + j, blocks, block, limit, [n](const T* p, int) { return load_n(p, n); }, &l);
    write(j, l.shift[0], l.far_sum[0], l.far_squares[0], l.zeros[0], l.dead[0], n);
  }
}

template <bool COUNT, typename T, typename Done>
inline void lane_stats(const Activation& a, const T* x, typename Vec<Acc<T>>::bits limit, const Parallel& parallel, Done&& done) {
  const LaneBlocks blocks(a);
  const int64_t c = a.channels;
  Scratch<ChannelSums> sums(blocks.count * c);
  for_tasks(parallel, blocks.count, a.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) lane_block_stats<COUNT>(a, x, blocks, b, limit, sums.data + b * c);
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
