// Which instruction set runs: asked of the processor once, overridden by tests.
#include <atomic>
#include <cstring>

#include "table.h"

// AVFAST_UP_TO_AVX2, of sanitized builds: the two AVX-512 sets are not compiled, and this machine is said to lack them.
namespace avfast {
namespace {

bool has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(AVFAST_UP_TO_AVX2)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool has_avx512_bf16() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(AVFAST_UP_TO_AVX2)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const KernelTable& best() {
  static const KernelTable& table = has_avx512_bf16() ? avx512_bf16_table()
                                    : has_avx512()    ? avx512_table()
                                    : has_avx2()      ? avx2_table()
                                                      : base_table();
  return table;
}

std::atomic<const KernelTable*> forced{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = forced.load(std::memory_order_acquire);
  return table ? *table : best();
}

bool machine_has_isa(const char* name) {
  if (!std::strcmp(name, "base")) return true;
  if (!std::strcmp(name, "avx2")) return has_avx2();
  if (!std::strcmp(name, "avx512")) return has_avx512();
  if (!std::strcmp(name, "avx512_bf16")) return has_avx512_bf16();
  return false;
}

bool force_isa(const char* name) {
  if (!name || !*name) {
    forced.store(nullptr, std::memory_order_release);
    return true;
  }
  if (!machine_has_isa(name)) return false;
  const KernelTable& table = !std::strcmp(name, "avx512_bf16") ? avx512_bf16_table()
                             : !std::strcmp(name, "avx512")    ? avx512_table()
                             : !std::strcmp(name, "avx2")      ? avx2_table()
                                                               : base_table();
  forced.store(&table, std::memory_order_release);
  return true;
}

}  // namespace avfast
