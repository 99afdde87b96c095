// One pass over the four vectors of every batch-norm layer.
//
// Cost model: 16 bytes read and 9 written per channel, all of it in cache; a whole ResNet-50 (26,560 channels) is a few
// microseconds of work, so it stays on the calling thread until there is ten times as much.

constexpr int64_t bn_scan_serial_channels = 1 << 17;

// Phi(z) = (1 + erf(z / sqrt 2)) / 2 with erf as x P(x^2) / Q(x^2) on [-4, 4] (beyond it, erf is 1 to float32).
// The coefficients are the float32 minimax pair used by Eigen and XLA; absolute error of Phi below 2e-7 (tested).
inline V<float> normal_cdf(V<float> z) {
  const V<float> bound = splat(4.0f);
  V<float> x = z * 0.70710678118654752f;
  x = smaller(x, bound);
  x = larger(x, -bound);
  const V<float> x2 = x * x;
  V<float> p = x2 * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * x2 + -2.10102402082508e-06f;
  p = p * x2 + -5.69250639462346e-05f;
  p = p * x2 + -7.34990630326855e-04f;
  p = p * x2 + -2.95459980854025e-03f;
  p = p * x2 + -1.60960333262415e-02f;
  V<float> q = x2 * -1.45660718464996e-05f + -2.13374055278905e-04f;
  q = q * x2 + -1.68282697438203e-03f;
  q = q * x2 + -7.37332916720468e-03f;
  q = q * x2 + -1.42647390514189e-02f;
  const V<float> phi = x * p / q * 0.5f + 0.5f;
  return larger(phi, V<float>{});  // rounding may reach -1e-7 in the far tail
}

constexpr int32_t smallest_normal = 0x00800000;
constexpr int32_t tiny_gamma = (127 - 100) << 23;  // 2^-100

// A float of magnitude below 2^28 times 2^100, exactly; larger ones as 2^128 / 2^28. Without arithmetic on denormals, which
// costs a hundred cycles an instruction where a dead channel is one.
inline V<float> scaled_up(M<float> magnitude) {
  constexpr int32_t exponent = 100 << 23;
  const V<float> denormal = __builtin_convertvector(magnitude, V<float>) * 0x1p-49f;
  const M<float> capped = magnitude < 0x4d800000 ? magnitude : M<float>{} + 0x4d800000;
  return magnitude < smallest_normal ? denormal : (V<float>)(capped + exponent);
}

// beta and |gamma| where some gamma is below 2^-100: both scaled, so that their ratio stays. Rare, and kept out of line.
struct Ratio {
  V<float> beta, gamma;
};
[[gnu::noinline, gnu::cold]] inline Ratio scaled_ratio(V<float> beta, M<float> gamma_bits) {
  const M<float> small = gamma_bits < tiny_gamma;
  const M<float> sign = (M<float>)beta & int32_t(0x80000000);
  const V<float> b = (V<float>)((M<float>)scaled_up(magnitude_bits<float>(beta)) | sign);
  return {small ? b : beta, small ? scaled_up(gamma_bits) : (V<float>)gamma_bits};
}

// beta / |gamma|; what it gives where gamma is 0 is not used.
inline V<float> standardised(V<float> beta, M<float> beta_bits, M<float> gamma_bits) {
  // Beside a gamma of at least 2^-100 a denormal beta is nothing; dividing 0 by 0 is spared too.
  // (The subtraction takes 0 out of the range; one unsigned comparison is left.)
  typedef uint32_t words __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  if (!any_lane((M<float>)((words)(gamma_bits - 1) < uint32_t(tiny_gamma - 1)))) [[likely]] {
    const V<float> b = beta_bits < smallest_normal ? V<float>{} : beta;
    return b / (V<float>)gamma_bits;
  }
  const Ratio r = scaled_ratio(beta, gamma_bits);
  return r.beta / r.gamma;
}

struct ScanCounts {
  M<float> abnormal{}, non_finite{}, collapsed{};
};

inline M<float> larger_bits(M<float> a, M<float> b) { return a > b ? a : b; }

// One register of channels. Every comparison is on bit patterns, so 1e-40 is a threshold like any other.
[[gnu::always_inline]] inline void scan_vector(
    V<float> gamma, V<float> beta, V<float> mean, V<float> var, int32_t limit, M<float>* flags, V<float>* score,
    V<float>* live, ScanCounts* counts) {
  constexpr int32_t infinity = 0x7f800000;
  const M<float> none = {};
  const M<float> g = magnitude_bits<float>(gamma), b = magnitude_bits<float>(beta), v = magnitude_bits<float>(var);
  const M<float> larger = larger_bits(g, b);
  const M<float> bad = larger_bits(larger, larger_bits(v, magnitude_bits<float>(mean))) >= infinity;
  const M<float> small = larger <= limit;
  // As signed integers every negative float is below every positive one: a negative variance counts as collapsed too.
  const M<float> collapsed = ((M<float>)var <= limit) & (v <= infinity);
  counts->abnormal = small ? counts->abnormal + 1 : counts->abnormal;
  counts->non_finite = bad ? counts->non_finite + 1 : counts->non_finite;
  counts->collapsed = collapsed ? counts->collapsed + 1 : counts->collapsed;
  *flags = (small ? none + int32_t(bn_abnormal) : none) | (bad ? none + int32_t(bn_non_finite) : none) |
           (collapsed ? none + int32_t(bn_collapsed) : none);
  *score = (V<float>)larger;

  const V<float> step = (M<float>)beta > 0 ? splat(1.0f) : V<float>{};
  const V<float> phi = select<float>(g == 0, step, normal_cdf(standardised(beta, b, g)));
  *live = select<float>(larger > infinity, splat(std::numeric_limits<float>::quiet_NaN()), phi);
}

// Layers are too short for the processor's prefetcher, which needs a few lines to see a stream: while one layer is scanned,
// the lines of the next are asked for.
struct Prefetcher {
  const char* vectors[4];
  int64_t bytes = 0;

  explicit Prefetcher(const BnLayer* next) {
    if (!next) return;
    const void* of_next[4] = {next->weight, next->bias, next->running_mean, next->running_var};
    for (int k = 0; k < 4; ++k) vectors[k] = static_cast<const char*>(of_next[k]);
    bytes = next->channels * std::min(size_of(next->affine_dtype), size_of(next->stats_dtype));
  }
  // Line number i of each vector.
  void line(int64_t i) const {
    if (i * 64 >= bytes) return;
    for (const char* vector : vectors)
      if (vector) __builtin_prefetch(vector + i * 64);
  }
};

template <typename TA, typename TS>
inline void scan_layer(
    const BnLayer& layer, const Prefetcher& next, int32_t limit, const BnScanArgs& args, int32_t* counts) {
  constexpr int64_t lanes = lanes_of<float>;
  const auto* weight = static_cast<const TA*>(layer.weight);
  const auto* bias = static_cast<const TA*>(layer.bias);
  const auto* mean = static_cast<const TS*>(layer.running_mean);
  const auto* var = static_cast<const TS*>(layer.running_var);
  uint8_t* flags = args.flags + layer.offset;
  float* score = args.score + layer.offset;
  float* live = args.live + layer.offset;

  // A 64-bit layer is read through float: a magnitude below the float range is 0, which every threshold catches.
  auto get = [](auto* p, int64_t i, int64_t n, float absent) -> V<float> {
    if (!p) return splat(absent);
    using T = std::remove_const_t<std::remove_pointer_t<decltype(p)>>;
    if constexpr (std::is_same_v<T, double>) {
      V<float> v = splat(absent);
      for (int64_t k = 0; k < n; ++k) v[k] = float(p[i + k]);
      return v;
    } else {
      return n == lanes ? load(p + i) : load_part(p + i, n, absent);
    }
  };
  ScanCounts total;
  M<float> f;
  V<float> s, p;
  typedef uint8_t bytes __attribute__((vector_size(AVFAST_VECTOR_BYTES / 4)));
  int64_t i = 0;
  for (; i + lanes <= layer.channels; i += lanes) {
    next.line(i / lanes);
    scan_vector(
        get(weight, i, lanes, 1.0f), get(bias, i, lanes, 0.0f), get(mean, i, lanes, 0.0f), get(var, i, lanes, 1.0f), limit,
        &f, &s, &p, &total);
    const bytes packed = __builtin_convertvector(f, bytes);
    std::memcpy(flags + i, &packed, sizeof packed);
    store(score + i, s);
    store(live + i, p);
  }
  if (const int64_t n = layer.channels - i; n > 0) {
    ScanCounts tail;
    scan_vector(get(weight, i, n, 1.0f), get(bias, i, n, 0.0f), get(mean, i, n, 0.0f), get(var, i, n, 1.0f), limit, &f, &s, &p, &tail);
    for (int64_t k = 0; k < n; ++k) {
      flags[i + k] = uint8_t(f[k]);
      total.abnormal[0] += tail.abnormal[k];
      total.non_finite[0] += tail.non_finite[k];
      total.collapsed[0] += tail.collapsed[k];
    }
    store_part(score + i, s, n);
    store_part(live + i, p, n);
  }
  for (int64_t line = i / lanes; line * 64 < next.bytes; ++line) next.line(line);
  counts[0] = int32_t(count_lanes<float>(total.abnormal));
  counts[1] = int32_t(count_lanes<float>(total.non_finite));
  counts[2] = int32_t(count_lanes<float>(total.collapsed));
}

inline void bn_scan_cpu(const BnScanArgs& args, const Parallel& parallel) {
  const int32_t limit = std::bit_cast<int32_t>(args.threshold);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      const BnLayer& layer = args.layers[l];
      const Prefetcher next(l + 1 < end ? &args.layers[l + 1] : nullptr);
      int32_t* counts = args.counts + l * bn_counts;
      if (layer.affine_dtype == DType::f32 && layer.stats_dtype == DType::f32) {
        scan_layer<float, float>(layer, next, limit, args, counts);
      } else {
        with_type(layer.affine_dtype, [&](auto a) {
          with_type(layer.stats_dtype, [&](auto s) { scan_layer<decltype(a), decltype(s)>(layer, next, limit, args, counts); });
        });
      }
    }
  };
  const BnLayer* last = args.layers + args.num_layers - 1;
  const int64_t channels = args.num_layers ? last->offset + last->channels : 0;
  if (channels <= bn_scan_serial_channels) {
    if (args.num_layers) body(int64_t{0}, args.num_layers);
  } else {
    parallel(args.num_layers, body);
  }
}
