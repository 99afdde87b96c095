// exp, log1p and sqrt on vectors. Included after simd.inl, once per instruction set.

constexpr double natural_log_of_2 = 0.69314718055994530942, log2_of_e = 1.4426950408889634074;

// Rounds to the nearest integer by adding and subtracting 1.5 * 2^(mantissa bits); `bits` keeps the integer in its low end.
template <typename A>
constexpr A rounding_constant = sizeof(A) == 4 ? A(12582912.0) : A(6755399441055744.0);

// 2^f for |f| <= 1/2: minimax polynomials, relative error 2e-9 and 3e-18.
template <typename A>
inline V<A> exp2_fraction(V<A> f) {
  if constexpr (sizeof(A) == 4) {
    V<A> p = splat<A>(0.00015345812158740182f);
    p = p * f + splat<A>(0.0013399931209474140f);
    p = p * f + splat<A>(0.0096184889565227916f);
    p = p * f + splat<A>(0.055503287769976638f);
    p = p * f + splat<A>(0.24022646890639572f);
    p = p * f + splat<A>(0.69314720573725268f);
    return p * f + splat<A>(1.0000000005541663f);
  } else {
    V<A> p = splat<A>(4.4352809446103611e-10);
    p = p * f + splat<A>(7.0741056262456594e-9);
    p = p * f + splat<A>(1.0178198033328528e-7);
    p = p * f + splat<A>(1.3215433089594630e-6);
    p = p * f + splat<A>(0.000015252733489960805);
    p = p * f + splat<A>(0.00015403530462514613);
    p = p * f + splat<A>(0.0013333558146789950);
    p = p * f + splat<A>(0.0096181291075883351);
    p = p * f + splat<A>(0.055504108664819920);
    p = p * f + splat<A>(0.24022650695910156);
    p = p * f + splat<A>(0.69314718055994533);
    return p * f + splat<A>(0.99999999999999999714);
  }
}

// 2^t to 1e-7 (float) or 3e-16 (double): 0 below the smallest number (without AVX-512: below the smallest normal one),
// infinite from 2^128 (2^1024) on, NaN for NaN.
template <typename A>
inline V<A> exp2_v(V<A> t) {
#if AVFAST_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) {
    t = larger(splat<A>(-151.0f), t);  // of a number and a NaN the instruction gives its second operand
    const __m512 n = _mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (V<A>)_mm512_scalef_ps((__m512)exp2_fraction<A>(t - (V<A>)n), n);
  }
#endif
  constexpr int mantissa = sizeof(A) == 4 ? 23 : 52;
  constexpr A lowest = sizeof(A) == 4 ? A(-126) : A(-1022), highest = sizeof(A) == 4 ? A(128) : A(1024);
  if constexpr (sizeof(A) == 4) {
    t = smaller(splat<A>(highest), t);
  } else {
    t = select<A>(t > splat<A>(highest), splat<A>(highest), t);
  }
  const V<A> shifted = t + splat<A>(rounding_constant<A>);
  const V<A> p = exp2_fraction<A>(t - (shifted - splat<A>(rounding_constant<A>)));
  // Unsigned: the high bits of the constant leave at the top, and so does the sum in lanes that become 0.
  const Words<A> power = ((Words<A>)shifted) << mantissa;
  return select<A>(t < splat<A>(lowest), V<A>{}, (V<A>)((Words<A>)p + power));
}

// e^x, as exp2_v. The product is split so that a large |x| loses nothing to the rounding of log2(e).
template <typename A>
inline V<A> exp_v(V<A> x) {
  constexpr A log2e = A(1.4426950408889634074);
  constexpr A rest = sizeof(A) == 4 ? A(1.4426950408889634074 - double(float(1.4426950408889634074))) : A(2.0355273740931033e-17);
  return exp2_v<A>(x * splat<A>(log2e) + x * splat<A>(rest));
}

// log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)), whose argument is at most 1/3.
template <typename A>
inline V<A> log1p_v(V<A> u) {
  constexpr int terms = sizeof(A) == 4 ? 8 : 17;
  const V<A> z = u / (u + splat<A>(A(2))), squared = z * z;
  V<A> sum = splat<A>(A(1) / A(2 * terms - 1));
#pragma GCC unroll 17
  for (int k = terms - 2; k >= 0; --k) sum = sum * squared + splat<A>(A(1) / A(2 * k + 1));
  return splat<A>(A(2)) * z * sum;
}

template <typename A>
inline V<A> sqrt_v(V<A> x) {
#if AVFAST_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return (V<A>)_mm512_sqrt_ps((__m512)x);
  else return (V<A>)_mm512_sqrt_pd((__m512d)x);
#elif AVFAST_VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 4) return (V<A>)_mm256_sqrt_ps((__m256)x);
  else return (V<A>)_mm256_sqrt_pd((__m256d)x);
#else
  for (int64_t l = 0; l < lanes_of<A>; ++l) x[l] = std::sqrt(x[l]);
  return x;
#endif
}
