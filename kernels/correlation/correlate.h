// Contract of the cross-attention to exemplars between csrc/ and the kernels; the mathematics is in avfast/reference/correlation.py.
#pragma once

#include "../common/types.h"

namespace avfast {

// [B, N, H, d] or [B, E, N, H, d] of one dtype; strides in elements, the channels of one head are neighbours.
struct HeadMap {
  const void* data;
  int64_t stride_b, stride_e, stride_n, stride_h;
};

struct CorrelateArgs {
  enum Map : int32_t { none = 0, lse = 1, max = 2, mean_prob = 3 };
  DType dtype;
  int64_t batch, exemplars, queries, keys, heads, depth;
  HeadMap q, k, v;
  const bool* key_mask;  // [B, E, Nk] dense, true where a key may be attended; or null
  double scale;
  Map map;
};

struct CorrelateFwdArgs {
  CorrelateArgs in;
  void* out;  // [B, E, Nq, H, d]
  void* lse;  // [B, E, H, Nq], float (double for double inputs)
  void* map;  // [B, E, Nq] or [B, E, Nq, Nk], of the type of lse
};

struct CorrelateBwdArgs {
  CorrelateArgs in;
  const void *grad_out, *grad_map, *lse;  // dense, as those above
  void *dq, *dk, *dv;                     // dense
};

}  // namespace avfast
