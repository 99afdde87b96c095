// Contract of the changes of colour between csrc/ and the kernels; the mathematics is in avfast/reference/colours.py.
#pragma once

#include "../common/types.h"

namespace avfast {

struct RecolourArgs {
  const void* pictures;  // [N, 3, H, W] dense
  bool bytes;            // uint8, and `out` is float; else both of `dtype`
  DType dtype;
  int64_t count, height, width;  // N, H, W
  const double* factors;         // [N, 4]: brightness, contrast, saturation, hue; null changes nothing
  const int64_t* order;          // [N, 4]: of these, 0 to 3
  const double* finish;          // [N, 3]: whether grey, sigma of the blur, whether solarised; null changes nothing
  const double *scale, *shift;   // [3]: what is multiplied and added at last
  void* out;                     // [N, 3, H, W] dense
};

}  // namespace avfast
