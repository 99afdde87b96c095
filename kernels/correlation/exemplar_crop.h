// Contract of the exemplar crops between csrc/ and the kernels; the mathematics is in avfast/reference/exemplar_crop.py.
#pragma once

#include "../common/types.h"

namespace avfast {

struct ExemplarCropArgs {
  const void* images;  // [B, C, H, W], any strides, at least one pixel
  bool bytes;          // uint8; else of `dtype`
  DType dtype;
  int64_t batch, channels, height, width;
  int64_t stride_b, stride_c, stride_h, stride_w;
  const void* boxes;  // [B, E, 5] dense: theta, top, left, bottom, right
  bool double_boxes;  // else float
  int64_t count;      // E
  int64_t out;
  bool cubic, antialias;
  void* crops;  // [B, E, C, out, out] dense, of the images' type
};

}  // namespace avfast
