#include "feature_map.h"
#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "dense_match";

}  // namespace

Tensors2 dense_match_fwd(Tensor feat_q, Tensor feat_k) {
  const FeatureMap q = feature_map(feat_q, op, "feat_q"), k = feature_map(feat_k, op, "feat_k");
  STD_TORCH_CHECK(
      k.dtype == q.dtype && k.batch == q.batch && k.depth == q.depth, "avfast.", op,
      ": feat_k: expected the dtype, batch and channels of feat_q");
  STD_TORCH_CHECK(k.positions > 0, "avfast.", op, ": feat_k: expected at least one position");
  STD_TORCH_CHECK(k.positions <= INT32_MAX, "avfast.", op, ": feat_k: expected fewer than 2^31 positions");
  const int64_t s = q.positions;
  Tensor index = allocate({q.batch, s}, {s, 1}, ScalarType::Long, feat_q);
  Tensor similarity = allocate({q.batch, s}, {s, 1}, accumulation_type(q.dtype), feat_q);
  const DenseMatchArgs args{q, k, static_cast<int64_t*>(index.mutable_data_ptr()), similarity.mutable_data_ptr()};
  kernels().dense_match(args, torch_threads());
  return {index, similarity};
}

}  // namespace avfast
