#include "introspect.h"
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(avfast, CPU, m) {
  AVFAST_REGISTER_OPS(m);
  AVFAST_REGISTER_CPU_OPS(m);
}

// Here rather than in introspect.cpp, which sees no torch header.
void avfast_poison_outputs(bool on) { avfast::poison_outputs.store(on); }
