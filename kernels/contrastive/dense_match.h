// Contract of the correspondence between csrc/ and the kernels; the mathematics is in avfast/reference/match.py.
#pragma once

#include "queue_nce.h"

namespace avfast {

struct DenseMatchArgs {
  FeatureMap q, k;   // one dtype, batch and depth; k has at least one position
  int64_t* index;    // [B, S]
  void* similarity;  // [B, S], float (double for double maps)
};

}  // namespace avfast
