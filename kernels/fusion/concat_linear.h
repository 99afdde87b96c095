// Contract of the linear layer over two modalities between csrc/ and the kernels; mathematics in avfast/reference/concat_linear.py.
#pragma once

#include "../common/types.h"

namespace avfast {

// y = [m_a a, m_v v] weight^T + bias, all of one type.
struct ConcatLinearArgs {
  DType dtype;
  int64_t rows, depth_a, depth_v, classes;
  const void *a, *v;             // [R, Da], [R, Dv], dense
  const void* weight;            // [C, Da + Dv], dense
  const bool *mask_a, *mask_v;   // [R], or null: all present
};

struct ConcatLinearFwdArgs {
  ConcatLinearArgs in;
  const void* bias;  // [C], or null
  void* out;         // [R, C]
};

struct ConcatLinearBwdArgs {
  ConcatLinearArgs in;
  const void* grad;            // [R, C], dense
  void *da, *dv;               // null where they are not wanted
  void *dweight, *dbias;       // the same
};

}  // namespace avfast
