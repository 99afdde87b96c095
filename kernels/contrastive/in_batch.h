// Contract of the in-batch losses between csrc/ and the kernels; the mathematics is in avfast/reference/contrastive.py.
#pragma once

#include "../common/types.h"

namespace avfast {

// Features [N, D] in any layout; strides in elements.
struct Rows {
  const void* data;
  DType dtype;
  int64_t count, depth;  // N, D
  int64_t stride_n, stride_d;
};

// Wide means float, or double for double features.
struct PairNceArgs {
  Rows a, b;
  double temperature;
  const int32_t *labels_a, *labels_b;  // equal where the labels are; null: row i's positive is column positive + i
  const int32_t* count;                // [N] positives of each row; null without labels
  int64_t positive, exclude;           // exclude < 0: nothing is left out
  bool l2, normalize, columns;
  // Made forward and read backward; null: made twice.
  void* logits;     // [blocks of b, blocks of a, kept_block, kept_block], wide
  double* lengths;  // [N + M + N]: of the rows of both sides, and the similarity (distance) of each row with its positive
  bool known;       // backward
};

// Rows of either side in a block of kept logits.
constexpr int64_t kept_block = 128;

struct PairNceFwdArgs {
  PairNceArgs pair;
  void *row_lse, *col_lse, *target;  // [N], [M] or null, [N], wide
};

struct PairNceBwdArgs {
  PairNceArgs pair;
  const void *grad_row, *grad_col, *row_lse, *col_lse;  // [N], [M], wide; columns only where asked for
  void *da, *db;                                        // [N, D], [M, D], contiguous, in the dtype of a; null: not asked for
  void* dtemperature;                                   // [1], wide
};

struct SelfNceArgs {
  Rows z;
  double temperature;
  const int32_t *labels, *count;  // null: the positive of row i is (i + N / 2) % N
  bool normalize;
};

struct SelfNceFwdArgs {
  SelfNceArgs self;
  void *lse, *target;  // [N], wide
};

struct SelfNceBwdArgs {
  SelfNceArgs self;
  const void *grad, *lse;  // [N], wide
  void *dz, *dtemperature;
};

struct SigmoidNceArgs {
  Rows a, b;
  double scale, bias;
  int64_t positive;
  bool normalize;
  bool backward;                   // gradients too, of the sum of grad_row times loss
  const void* grad_row;            // [N], wide
  void* loss;                      // [N], wide
  void *da, *db, *dscale, *dbias;
};

}  // namespace avfast
