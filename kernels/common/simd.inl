// Vectors for one instruction set. Included inside that set's namespace, once per set, after its #pragma GCC target:
// no include guard, no #include. GCC's vector extension gives one source for 16, 32 and 64 byte registers.

template <typename A>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  typedef uint32_t words __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  using bits = int32_t;
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  typedef uint64_t words __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
  using bits = int64_t;
};
template <typename A>
using V = typename Vec<A>::type;
template <typename A>
using M = typename Vec<A>::mask;
template <typename A>
using Words = typename Vec<A>::words;
template <typename A>
constexpr int64_t lanes_of = AVFAST_VECTOR_BYTES / sizeof(A);

// The type sums are kept in: float for every element type but double.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using Acc = typename Accumulate<T>::type;

inline int64_t whole_vectors(int64_t n, int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }

template <typename A>
inline V<A> splat(A value) {
  return value - V<A>{};  // value + V<A>{} would turn -0 into +0
}

// ------------------------------------------------------------------------------------------- conversions

inline float to_float(bf16_t x) {
  return std::bit_cast<float>(uint32_t(x.bits) << 16);
}

inline float to_float(f16_t x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x0400u) return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000u));
  const float magnitude = float(rest) * 0x1p-24f;  // subnormal
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }

template <typename T>
inline T from_float(Acc<T> x);
template <>
inline float from_float<float>(float x) { return x; }
template <>
inline double from_float<double>(double x) { return x; }
template <>
inline bf16_t from_float<bf16_t>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
inline f16_t from_float<f16_t>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (rest >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to 65536 or more: infinity
  if (rest < 0x38800000u) {  // subnormal half: adding 0.5 rounds to multiples of 2^-24, to nearest even
    const float shifted = std::bit_cast<float>(rest) + 0.5f;
    return {uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  return {uint16_t(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13))};
}

// ------------------------------------------------------------------------------------------- load, store

template <typename T>
inline V<Acc<T>> load(const T* p) {
  using A = Acc<T>;
  if constexpr (std::is_same_v<T, A>) {
    V<A> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    typedef uint16_t half_bits __attribute__((vector_size(AVFAST_VECTOR_BYTES / 2)));
    typedef uint32_t word_bits __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
    half_bits h;
    std::memcpy(&h, p, sizeof h);
    return (V<float>)(__builtin_convertvector(h, word_bits) << 16);
  } else {
#if AVFAST_VECTOR_BYTES == 64
    return (V<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif AVFAST_VECTOR_BYTES == 32
    return (V<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    V<float> v;
    for (int i = 0; i < lanes_of<float>; ++i) v[i] = to_float(p[i]);
    return v;
#endif
  }
}

template <typename T>
inline void store(T* p, V<Acc<T>> v) {
  using A = Acc<T>;
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(p, &v, sizeof v);
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    typedef uint16_t half_bits __attribute__((vector_size(AVFAST_VECTOR_BYTES / 2)));
    typedef uint32_t word_bits __attribute__((vector_size(AVFAST_VECTOR_BYTES)));
    const word_bits u = (word_bits)v;
    const word_bits rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const word_bits is_nan = (word_bits)((u & 0x7fffffffu) > 0x7f800000u);
    const half_bits h = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0u & is_nan), half_bits);
    std::memcpy(p, &h, sizeof h);
  } else {
#if AVFAST_VECTOR_BYTES == 64
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif AVFAST_VECTOR_BYTES == 32
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < lanes_of<float>; ++i) p[i] = from_float<f16_t>(v[i]);
#endif
  }
}

// The last n < lanes elements of a row; missing lanes read as `fill`. Never touches memory past the row.
template <typename T>
inline V<Acc<T>> load_part(const T* p, int64_t n, Acc<T> fill) {
#if AVFAST_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>)
    return (V<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16((1u << n) - 1), p);
#endif
  V<Acc<T>> v = splat<Acc<T>>(fill);
  for (int64_t i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}

template <typename T>
inline void store_part(T* p, V<Acc<T>> v, int64_t n) {
#if AVFAST_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}

// Asks for a line that will be read soon. Past the end of a tensor it does nothing. The processor's own prefetcher stops
// at every 4 KB page; this is worth a fifth of the bandwidth on long rows and half of it across strided ones.
constexpr int64_t prefetch_bytes = 4096;
template <typename T>
inline void prefetch(const T* p, int64_t bytes = prefetch_bytes) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + bytes);
}

// ------------------------------------------------------------------------------------------- arithmetic

template <typename A>
inline M<A> magnitude_bits(V<A> v) {
  using B = typename Vec<A>::bits;
  return (M<A>)v & ~(B(1) << (8 * sizeof(B) - 1));
}

// Lanes whose magnitude is at most the one whose bits are `limit`. On bit patterns: denormals count even where the
// host flushes them to zero, and NaN is never small.
template <typename A>
inline M<A> at_most(V<A> v, typename Vec<A>::bits limit) {
  return magnitude_bits<A>(v) <= limit;
}

template <typename A>
inline V<A> select(M<A> mask, V<A> yes, V<A> no) {
  return mask ? yes : no;
}

inline bool any_lane(M<float> mask) {
#if AVFAST_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif AVFAST_VECTOR_BYTES == 32
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

// min and max of floats; GCC does not find the instruction in a vector conditional.
inline V<float> smaller(V<float> a, V<float> b) {
#if AVFAST_VECTOR_BYTES == 64
  return (V<float>)_mm512_min_ps((__m512)a, (__m512)b);
#elif AVFAST_VECTOR_BYTES == 32
  return (V<float>)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

inline V<float> larger(V<float> a, V<float> b) {
#if AVFAST_VECTOR_BYTES == 64
  return (V<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif AVFAST_VECTOR_BYTES == 32
  return (V<float>)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// Sum of all lanes, halves first: five additions deep at most, where a loop would be sixteen.
template <typename A, typename W>
inline A sum_lanes_of(W v) {
  constexpr int64_t n = sizeof(W) / sizeof(A);
  if constexpr (n == 2) {
    return v[0] + v[1];
  } else {
    typedef A half __attribute__((vector_size(sizeof(W) / 2)));
    half parts[2];
    std::memcpy(parts, &v, sizeof v);
    return sum_lanes_of<A>(half(parts[0] + parts[1]));
  }
}

template <typename A>
inline A sum_lanes(V<A> v) {
  return sum_lanes_of<A>(v);
}

template <typename A>
inline int64_t count_lanes(M<A> v) {
  return int64_t(sum_lanes_of<typename Vec<A>::bits>(v));
}

// Calls f(T{}) with the element type of a tensor.
template <typename F>
inline void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::f16: return f(f16_t{});
    case DType::bf16: return f(bf16_t{});
  }
}

// Below this many elements a second thread costs more than it brings.
constexpr int64_t serial_elements = 1 << 14;

template <typename F>
inline void for_tasks(const Parallel& parallel, int64_t tasks, int64_t elements, F&& body) {
  if (elements <= serial_elements) {
    if (tasks > 0) body(int64_t{0}, tasks);
  } else {
    parallel(tasks, body);
  }
}
