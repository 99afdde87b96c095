// The table of each instruction set, filled by the families; every (set, family) is an object file of its own.
#include "table.h"

namespace avfast {

#define AVFAST_FAMILIES(isa)                   \
  namespace isa {                              \
  void fill_common(KernelTable& table);        \
  void fill_batch_norm(KernelTable& table);    \
  void fill_contrastive(KernelTable& table);   \
  void fill_correlation(KernelTable& table);   \
  void fill_fusion(KernelTable& table);        \
  void fill_pictures(KernelTable& table);      \
  inline KernelTable filled(const char* name) {\
    KernelTable table{name};                   \
    fill_common(table);                        \
    fill_batch_norm(table);                    \
    fill_contrastive(table);                   \
    fill_correlation(table);                   \
    fill_fusion(table);                        \
    fill_pictures(table);                      \
    return table;                              \
  }                                            \
  }

AVFAST_FAMILIES(isa_base)
const KernelTable& base_table() {
  static const KernelTable table = isa_base::filled("base");
  return table;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
AVFAST_FAMILIES(isa_avx2)
const KernelTable& avx2_table() {
  static const KernelTable table = isa_avx2::filled("avx2");
  return table;
}
#else
const KernelTable& avx2_table() { return base_table(); }
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(AVFAST_UP_TO_AVX2)
AVFAST_FAMILIES(isa_avx512)
AVFAST_FAMILIES(isa_avx512_bf16)
const KernelTable& avx512_table() {
  static const KernelTable table = isa_avx512::filled("avx512");
  return table;
}
const KernelTable& avx512_bf16_table() {
  static const KernelTable table = isa_avx512_bf16::filled("avx512_bf16");
  return table;
}
#else
const KernelTable& avx512_table() { return base_table(); }
const KernelTable& avx512_bf16_table() { return base_table(); }
#endif

}  // namespace avfast
