// Linked only when the CUDA kernels were compiled.
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(avfast, CUDA, m) {
  AVFAST_REGISTER_OPS(m);
}
