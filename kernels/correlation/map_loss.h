// Contract of the map losses between csrc/ and the kernels; the mathematics is in avfast/reference/map_loss.py.
#pragma once

#include "../common/types.h"

namespace avfast {

// Small maps [B, C, h, w] with at least one channel and position, any strides.
struct SmallMaps {
  const void* data;
  DType dtype;
  int64_t batch, channels, height, width;
  int64_t stride_b, stride_c, stride_h, stride_w;
};

struct BoxBceArgs {
  SmallMaps logits;   // one channel, or two whose difference is the logit
  const void* boxes;  // [M, 5] dense: theta, top, left, bottom, right; or null
  bool double_boxes;  // else float
  const uint8_t* mask;  // [M, H, W] dense, in place of the boxes
  int64_t height, width;
  double source_size, shrink;
  bool align_corners;
  void* loss;  // [M] wide
  void* grad;  // [M, 1, h, w] wide, or null
};

enum class IntType : int32_t { u8, i16, i32, i64 };

struct UpsampleCeArgs {
  SmallMaps logits;
  const void* target;  // [B, H, W], any strides
  IntType target_type;
  int64_t stride_b, stride_h, stride_w;
  int64_t height, width;
  const void* weight;       // [C] wide, dense, or null
  const void* grad_pixels;  // [B, H, W] wide, dense: what the gradient of each pixel is multiplied by; or null
  bool align_corners;
  int64_t ignore_index;
  double label_smoothing;
  void* loss;   // [B] wide, or with per_pixel [B, H, W]; or null
  bool per_pixel;
  void* total;  // [B] wide: sums of weights; or null
  void* grad;   // [B, C, h, w] wide; or null
  bool* out_of_range;  // set where a class is neither of 0..C-1 nor ignored
};

}  // namespace avfast
