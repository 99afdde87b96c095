// Contract of the fusion of two modalities between csrc/ and the kernels; the mathematics is in avfast/reference/fusion.py.
#pragma once

#include "../common/types.h"

namespace avfast {

// A [R, D] operand that may be one number, a row or a column repeated: a stride of 0 repeats. No data: all present, or a weight of 1.
struct FusionMask {
  const bool* data;
  int64_t stride_r, stride_d;
};
struct FusionWeight {
  const void* data;  // of the accumulation type
  int64_t stride_r, stride_d;
};

struct FusionArgs {
  enum Mode : int32_t { sum = 0, gated = 1, film = 2, concat = 3 };
  DType dtype;
  Mode mode;
  bool renormalize;
  int64_t rows, depth_a, depth_v;
  const void *a, *v;  // [R, D], [R, D] (2 D for film), dense
  FusionMask mask_a, mask_v;
  FusionWeight weight_a, weight_v;

  int64_t depth_out() const { return mode == concat ? depth_a + depth_v : depth_a; }
};

struct FusionFwdArgs {
  FusionArgs in;
  void* out;  // [R, depth_out]
};

// Rows whose share of a weight's gradient is summed before anything else is added: fixed, so that threads change no bit.
constexpr int64_t fusion_block = 32;

struct FusionBwdArgs {
  FusionArgs in;
  const void* grad;
  void *da, *dv;
  void *dweight_a, *dweight_v;    // of the shape of the weight, or null
  void *partial_a, *partial_v;    // [blocks, D] (or [blocks, 1]) of the accumulation type, where a weight is repeated along rows
};

}  // namespace avfast
