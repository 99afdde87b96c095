// What the bindings of the in-batch losses share.
#pragma once

#include <algorithm>
#include <optional>

#include "../kernels/contrastive/in_batch.h"
#include "launch.h"
#include "ops.h"

namespace avfast {

inline Rows rows_of(const Tensor& x, const char* op, const char* argument) {
  STD_TORCH_CHECK(x.dim() == 2, "avfast.", op, ": ", argument, ": expected shape [N, D], got ", x.dim(), " dimension(s)");
  return {x.const_data_ptr(), dtype_of(x, op, argument), x.size(0), x.size(1), x.stride(0), x.stride(1)};
}

inline void check_alike(const Rows& a, const Rows& b, const char* op) {
  STD_TORCH_CHECK(b.dtype == a.dtype && b.depth == a.depth, "avfast.", op, ": b: expected the dtype and width of a");
}

// Row i's positive is column positive + i.
inline void check_positive(const Rows& a, const Rows& b, int64_t positive, const char* op) {
  STD_TORCH_CHECK(
      b.count == 0 || (positive >= 0 && positive + a.count <= b.count), "avfast.", op, ": positive: expected 0 to M - N = ",
      b.count - a.count, ", got ", positive);
}

// n values in the wide type, contiguous.
inline Tensor wide_vector(const Tensor& x, int64_t n, ScalarType wide, const char* op, const char* argument) {
  STD_TORCH_CHECK(
      x.dim() == 1 && x.numel() == n && x.scalar_type() == wide, "avfast.", op, ": ", argument, ": expected shape [", n,
      "] in the accumulation dtype of the features");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline double wide_scalar(const Tensor& x, ScalarType wide, const char* op, const char* argument) {
  const Tensor one = wide_vector(x, 1, wide, op, argument);
  return wide == ScalarType::Double ? *static_cast<const double*>(one.const_data_ptr())
                                    : double(*static_cast<const float*>(one.const_data_ptr()));
}

// Contiguous, uninitialised.
inline Tensor allocate_dense(const std::array<int64_t, 4>& sizes, ScalarType dtype, const Tensor& like) {
  return allocate(
      {sizes.begin(), sizes.end()}, {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1}, dtype, like);
}

// Contiguous, uninitialised, like the features.
inline Tensor gradient_like(const Tensor& x) {
  return allocate({x.size(0), x.size(1)}, {x.size(1), 1}, x.scalar_type(), x);
}

// Labels of both sides by rank: equal where the labels are, and small enough for a lane.
struct LabelRanks {
  std::vector<int32_t> a, b;

  LabelRanks(const Tensor& labels_a, int64_t n, const Tensor& labels_b, int64_t m, const char* op);
  // How often each label of a occurs in b; where b is a itself, without the row.
  void count(int32_t* out, int64_t exclude) const;
};

}  // namespace avfast
