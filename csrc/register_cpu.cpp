#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(avfast, CPU, m) {
  AVFAST_REGISTER_OPS(m);
}
