// Contract of the random masks of patches between csrc/ and the kernels; the mathematics is in avfast/reference/patch_mask.py.
#pragma once

#include "../common/types.h"

namespace avfast {

struct PatchMaskArgs {
  const void* x;  // [N, C, H, W] dense
  void* out;      // like x; x itself where only masked patches are written
  DType dtype;
  int64_t samples, channels, height, width;
  const int64_t *keys, *counts;  // [N]
  int64_t patch_h, patch_w;
  double value;
  const void *scale, *shift;  // [C] of the accumulation type, or null
};

}  // namespace avfast
