// What the multiply-add units can do at most: a loop on registers alone, for benchmarks to hold kernels against.
// Included after simd.inl, once per instruction set.

// Sums that do not wait for each other: more than latency times units, and all fit into the registers.
constexpr int peak_chains = AVFAST_VECTOR_BYTES == 64 ? 24 : 12;

template <typename F>
[[gnu::always_inline]] inline void repeat_chains(int64_t rounds, F&& multiply_add) {
  volatile float unknown = 0.5f;  // read anew for every chain: none can be computed in advance or from another
  const V<float> x = splat<float>(unknown);
  V<float> sums[peak_chains];
#pragma GCC unroll 32
  for (int c = 0; c < peak_chains; ++c) sums[c] = splat<float>(unknown);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < peak_chains; ++c) sums[c] = multiply_add(sums[c], x);
  }
#pragma GCC unroll 32
  for (int c = 0; c < peak_chains; ++c) unknown = unknown + sum_lanes<float>(sums[c]);
}

// Runs `rounds` multiply-adds on every chain; returns the flops that were. Products of bf16 where there is an
// instruction for them, else of float.
inline int64_t multiply_add_cpu(bool bf16, int64_t rounds) {
  const int64_t flops = 2 * rounds * peak_chains * lanes_of<float>;
#ifdef AVFAST_BF16_DOT
  if (bf16) {
    repeat_chains(rounds, [](V<float> sum, V<float> x) {
      return (V<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)x);
    });
    return 2 * flops;
  }
#endif
  // The product depends on the sum, or it would be computed once.
  repeat_chains(rounds, [](V<float> sum, V<float> x) { return sum * x + x; });
  return flops;
}
