// Cross-entropy of one logit per pixel against 0 or 1, softplus(-z) or softplus(z), and its slope.

// log(1 + q) for q >= 0. Where 1 + q is below 2, q itself is what is left of it.
template <typename A>
inline V<A> log_one_plus(V<A> q) {
  using B = typename Vec<A>::bits;
  constexpr int mantissa = sizeof(A) == 4 ? 23 : 52;
  constexpr B bias = sizeof(A) == 4 ? 127 : 1023;
  const V<A> y = q + splat<A>(A(1));
  const M<A> bits = (M<A>)y, power = (bits >> mantissa) - bias;
  const V<A> rest = (V<A>)((bits & ((B(1) << mantissa) - 1)) | (bias << mantissa)) - splat<A>(A(1));
  const V<A> u = select<A>(power == M<A>{}, q, rest);
  const V<A> sum = __builtin_convertvector(power, V<A>) * splat<A>(A(0.69314718055994530942)) + log1p_v<A>(u);
  return select<A>(q < splat<A>(std::numeric_limits<A>::infinity()), sum, q);
}

template <typename A>
inline V<A> at_least_zero(V<A> x) {
  if constexpr (sizeof(A) == 4) return larger(V<A>{}, x);
  else return select<A>(x < V<A>{}, V<A>{}, x);
}

// With s the logit turned so that the target is 0, a pixel costs max(s, 0) + log(1 + e^-|s|). The logarithms of up to 16 pixels are taken
// together: q with 1 + q = (1 + e_1)(1 + e_2)... grows by e (1 + q), which loses nothing of a small e.
template <typename A>
struct BinaryPixels {
  using Bits = typename Vec<A>::bits;
  static constexpr bool binary = true;
  static constexpr int64_t channels = 1, lanes = lanes_of<A>;

  const int64_t width, blocks;
  const bool backward, some_missing;
  double loss = 0, total = 0;

  // Without a target (code below 0) a pixel counts nothing.
  template <bool MISSING>
  void sum(const MapRows<A>& rows, const A* upper, const A* slope, const Bits* codes, A* sums, A* lower) {
    constexpr Bits sign = std::numeric_limits<Bits>::min();
    constexpr int top = 8 * sizeof(A) - 1;
    const V<A> at = load<A>(upper), step = load<A>(slope);
    V<A> product{}, positive{}, all{}, part{};
    for (int64_t i = 0; i < rows.count; ++i, codes += blocks * lanes) {
      M<A> code;
      std::memcpy(&code, codes, sizeof code);
      const M<A> turn = code << top;
      const V<A> share = splat<A>(rows.share[i]);
      const V<A> s = (V<A>)((M<A>)(at + share * step) ^ turn);
      V<A> e = exp_v<A>((V<A>)((M<A>)s | sign));
      const V<A> inverse = splat<A>(A(1)) / (splat<A>(A(1)) + e);
      V<A> over = at_least_zero<A>(s), wrong = select<A>(s < V<A>{}, e * inverse, inverse);
      if constexpr (MISSING) {
        const M<A> gone = code < M<A>{};
        e = select<A>(gone, V<A>{}, e), over = select<A>(gone, V<A>{}, over), wrong = select<A>(gone, V<A>{}, wrong);
      }
      product += e + e * product;
      positive += over;
      const V<A> g = (V<A>)((M<A>)wrong ^ turn);
      all += g;
      part += share * g;
    }
    loss += double(sum_lanes<A>(positive + log_one_plus<A>(product)));
    store<A>(sums, all);
    store<A>(lower, part);
  }

  void block(
      const MapRows<A>& rows, int64_t, int64_t, int64_t block, const A* upper, const A* slope, const Bits* codes, A* sums,
      A* lower) {
    if (some_missing || (block + 1) * lanes > width) sum<true>(rows, upper, slope, codes, sums, lower);
    else sum<false>(rows, upper, slope, codes, sums, lower);
  }
};
