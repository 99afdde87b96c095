// Per-channel sums over an activation, the part every batch-norm kernel shares.
//
// Work is cut by shape alone, so the bits of a result do not depend on the number of threads:
//   rows  [N, C, S]  one task per channel (or per part of a channel, when there are few channels)
//   lanes [N, S, C]  one task per block of positions; partial sums combined in block order
// Inside a run of at most `run_elements` values (4096 with AVX-512) sums are float lanes; runs are combined in double.

constexpr int64_t run_elements = 64 * AVFAST_VECTOR_BYTES;  // each of the 4 x lanes partial sums is at most 64 long
constexpr int64_t lane_block_positions = 256;

// Mean and sum of squared deviations of n values, mergeable by Chan's formula.
struct Moments {
  double n = 0, mean = 0, m2 = 0;

  // Adds n values given the sums of (x - shift) and (x - shift)^2.
  void add(double count, double shift, double sum, double squares) {
    const double delta = sum / count;
    double deviations = squares - sum * delta;
    if (deviations < 0) deviations = 0;  // rounding; written so that NaN stays NaN
    merge({count, shift + delta, deviations});
  }
  void merge(const Moments& other) {
    if (other.n == 0) return;
    const double total = n + other.n, gap = other.mean - mean;
    mean += gap * (other.n / total);
    m2 += other.m2 + gap * gap * (n * other.n / total);
    n = total;
  }
  // Of no values at all, both are NaN, as in torch.
  double average() const { return n > 0 ? mean : std::numeric_limits<double>::quiet_NaN(); }
  double var() const { return n > 0 ? m2 / n : std::numeric_limits<double>::quiet_NaN(); }
};

// A shift close to the data keeps the one-pass variance safe: the mean of the first few values.
template <typename T>
inline Acc<T> first_shift(const T* x, int64_t n) {
  Acc<T> total = 0;
  const int64_t m = std::min<int64_t>(n, 16);
  for (int64_t i = 0; i < m; ++i) total += to_float(x[i]);
  return m ? total / Acc<T>(m) : Acc<T>(0);
}

template <typename A>
inline A finite_or_zero(double x) {
  return std::isfinite(x) ? A(x) : A(0);
}

// Where the next run of a channel is centred: its mean so far.
template <typename A>
inline A moment_shift(const Moments& moments) {
  return finite_or_zero<A>(moments.mean);
}

// Sums of x - shift and (x - shift)^2 over a run; four independent vectors hide the latency of the adds. COUNT is off where
// nobody asks for zeros.
template <bool COUNT, typename T>
struct Run {
  using A = Acc<T>;
  using Bits = typename Vec<A>::bits;
  static constexpr int64_t lanes = lanes_of<A>;
  A shift;
  Bits limit;
  int64_t n = 0, rows = 0;
  V<A> s[4] = {}, q[4] = {};

  // Adds a contiguous row and returns how many of its elements are zero.
  int64_t add(const T* x, int64_t count) {
    const V<A> k = splat(shift);
    M<A> z[4] = {};
    auto take = [&](int u, V<A> v) {
      const V<A> d = v - k;
      s[u] += d;
      q[u] += d * d;
      if constexpr (COUNT) z[u] = at_most<A>(v, limit) ? z[u] + 1 : z[u];
    };
    int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes)
      for (int u = 0; u < 4; ++u) {
        prefetch(x + i + u * lanes);
        take(u, load(x + i + u * lanes));
      }
    for (int u = 0; u < 3 && i + lanes <= count; ++u, i += lanes) take(u, load(x + i));
    int64_t padding = 0;
    if (i < count) {
      // Padding with the shift adds nothing to the sums, but may look like zeros: counted out again.
      take(3, load_part(x + i, count - i, shift));
      if constexpr (COUNT) padding = at_most<A>(k, limit)[0] ? lanes - (count - i) : 0;
    }
    n += count;
    ++rows;
    return COUNT ? count_lanes<A>((z[0] + z[1]) + (z[2] + z[3])) - padding : 0;
  }

  // Whether another row would make the chains of additions long enough to show in the result.
  bool full(int64_t next_row) const { return n + next_row > run_elements || rows == 64; }

  void flush(Moments* moments) {
    if (n == 0) return;
    const double sum = double(sum_lanes<A>((s[0] + s[1]) + (s[2] + s[3])));
    moments->add(double(n), double(shift), sum, double(sum_lanes<A>((q[0] + q[1]) + (q[2] + q[3]))));
    *this = {moment_shift<A>(*moments), limit};
  }
};

struct ChannelSums {
  Moments moments;
  int64_t zeros = 0, dead = 0;
};

constexpr int64_t short_row = 256;  // elements; shorter rows of one channel are summed together before they are combined

// Channels [begin, end) of [N, C, S], samples [first, last). Long rows: samples outside, channels inside, because reading
// memory in order is worth a factor of two. Short rows: channels outside, because combining each row would cost more.
template <bool COUNT, typename T>
inline void reduce_rows(
    const T* x, const Activation& a, int64_t begin, int64_t end, int64_t first, int64_t last,
    typename Vec<Acc<T>>::bits limit, ChannelSums* out) {
  using A = Acc<T>;
  const auto row = [&](int64_t n, int64_t c) { return x + (n * a.channels + c) * a.positions; };
  const auto start = [&](const T* p, int64_t m) { return Run<COUNT, T>{finite_or_zero<A>(double(first_shift(p, m))), limit}; };
  const auto count = [&](ChannelSums& sums, int64_t zeros) {
    sums.zeros += zeros;
    sums.dead += COUNT && zeros == a.positions && a.positions > 0;
  };
  for (int64_t c = begin; c < end; ++c) out[c - begin] = {};
  if (a.positions < short_row) {
    for (int64_t c = begin; c < end && first < last; ++c) {
      ChannelSums& sums = out[c - begin];
      Run<COUNT, T> run = start(row(first, c), a.positions);
      for (int64_t n = first; n < last; ++n) {
        count(sums, run.add(row(n, c), a.positions));
        if (run.full(a.positions)) run.flush(&sums.moments);
      }
      run.flush(&sums.moments);
    }
    return;
  }
  for (int64_t n = first; n < last; ++n)
    for (int64_t c = begin; c < end; ++c) {
      ChannelSums& sums = out[c - begin];
      int64_t zeros = 0;
      for (int64_t i = 0; i < a.positions; i += run_elements) {
        const int64_t m = std::min(run_elements, a.positions - i);
        Run<COUNT, T> run = start(row(n, c) + i, m);
        if (sums.moments.n) run.shift = moment_shift<A>(sums.moments);
        zeros += run.add(row(n, c) + i, m);
        run.flush(&sums.moments);
      }
      count(sums, zeros);
    }
}

// Channels whose values fit in the nearest caches together: statistics and output are made while they are there.
template <typename T>
inline int64_t channels_per_block(const Activation& a) {
  const int64_t bytes = std::max<int64_t>(a.per_channel() * int64_t(sizeof(T)), 1);
  return std::clamp<int64_t>((int64_t(1) << 18) / bytes, 1, std::max<int64_t>(a.channels, 1));
}

// ------------------------------------------------------------------------------------------------ lanes

// How [N, S, C] is cut: blocks of whole samples where samples are short, parts of one sample where they are long.
struct LaneBlocks {
  int64_t samples_per_block, blocks_per_sample, count, positions_per_block;

  explicit LaneBlocks(const Activation& a) {
    const int64_t s = std::max<int64_t>(a.positions, 1);
    samples_per_block = std::max<int64_t>(lane_block_positions / s, 1);
    // Short samples are added 16, 4 and 1 positions at a time; no sum may take more than 64 such steps.
    const int64_t steps = s / 16 + s % 16 / 4 + s % 4;
    if (s > 1) samples_per_block = std::clamp<int64_t>(64 / steps, 1, samples_per_block);
    blocks_per_sample = samples_per_block > 1 ? 1 : (s + lane_block_positions - 1) / lane_block_positions;
    positions_per_block = (s + blocks_per_sample - 1) / blocks_per_sample;
    const int64_t groups = (a.samples + samples_per_block - 1) / samples_per_block;
    count = a.positions == 0 ? 0 : groups * blocks_per_sample;
  }
  // Samples [first, last) and, inside each, positions [begin, end).
  void range(const Activation& a, int64_t block, int64_t* first, int64_t* last, int64_t* begin, int64_t* end) const {
    *first = block / blocks_per_sample * samples_per_block;
    *last = std::min(*first + samples_per_block, a.samples);
    *begin = block % blocks_per_sample * positions_per_block;
    *end = std::min(*begin + positions_per_block, a.positions);
  }
};

// Calls f(j, n) for each register of channels: n lanes starting at channel j.
template <typename A, typename F>
inline void for_lanes(int64_t channels, F&& f) {
  int64_t j = 0;
  for (; j + lanes_of<A> <= channels; j += lanes_of<A>) f(j, lanes_of<A>);
  if (j < channels) f(j, channels - j);
}

template <typename T>
inline V<Acc<T>> load_n(const T* p, int64_t n) {
  return n == lanes_of<Acc<T>> ? load(p) : load_part(p, n, Acc<T>(0));
}

template <typename T>
inline void store_n(T* p, V<Acc<T>> v, int64_t n) {
  if (n == lanes_of<Acc<T>>) store(p, v);
  else store_part(p, v, n);
}
