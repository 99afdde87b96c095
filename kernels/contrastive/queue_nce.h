// Contract of the queue loss between csrc/ and the kernels; the mathematics is in avfast/reference/queue.py.
#pragma once

#include "../common/types.h"

namespace avfast {

// Rows [B, S] of features [B, D, S] in any layout; strides in elements.
struct FeatureMap {
  const void* data;
  DType dtype;
  int64_t batch, depth, positions;  // B, D, S
  int64_t stride_b, stride_d, stride_s;

  int64_t rows() const { return batch * positions; }
};

struct Queue {
  const void* data;
  DType dtype;
  int64_t size;  // K
  int64_t stride_k, stride_d;
};

struct QueueNceFwdArgs {
  FeatureMap q, k;  // one dtype
  Queue queue;
  const int64_t* match;  // [B, S] positions of k, negative: no positive; null: position s
  double temperature;
  bool normalize;
  void *loss, *positive, *lse;  // [B, S], float (double for double q)
  void* dq;                     // [B, D, S] of the same type, or null
};

struct QueueNceBwdQueueArgs {
  FeatureMap q;
  Queue queue;
  const int64_t* match;
  const void *grad, *lse;  // [B, S]
  double temperature;
  bool normalize;
  void* dqueue;  // [K, D], contiguous, in the queue's dtype
};

}  // namespace avfast
