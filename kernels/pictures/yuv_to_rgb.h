// Contract of the colour conversion between csrc/ and the kernels; the arithmetic is in avfast/reference/yuv.py.
#pragma once

#include "../common/types.h"

namespace avfast {

// Rows of bytes, `stride` bytes from one to the next.
struct BytePlane {
  const uint8_t* data;
  int64_t stride;
};

struct YuvToRgbArgs {
  const BytePlane *y, *u, *v;  // one of each per frame
  int64_t frames;
  int64_t height, width, chroma_height, chroma_width;  // of the planes, 1 to 2^15 each
  int64_t top, left, bottom, right;  // of the box, in 2^-16 pixels of y
  bool centred;                      // colour samples lie between the columns they stand for, not on the left one
  int64_t out_height, out_width;     // 1 to 2^15
  int32_t black;                     // y of black
  int32_t scale, red_v, green_u, green_v, blue_u;  // of the matrix, 13 bits behind the point
  const void* table;                 // [3][256] elements of `element` bytes that bytes become; null keeps bytes
  int64_t element;
  void* rgb;  // [T, 3, H, W] dense
};

}  // namespace avfast
