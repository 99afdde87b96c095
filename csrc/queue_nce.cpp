#include "feature_map.h"
#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "queue_info_nce";

Queue queue_view(const Tensor& queue, int64_t depth) {
  STD_TORCH_CHECK(
      queue.dim() == 2 && queue.size(1) == depth, "avfast.", op, ": queue: expected shape [K, D] with D = ", depth);
  return {queue.const_data_ptr(), dtype_of(queue, op, "queue"), queue.size(0), queue.stride(0), queue.stride(1)};
}

// Positions [B, S], contiguous; null when there are none. Read by kernels as they are: ops/ checks their range.
const int64_t* positions(std::optional<Tensor>& match, const FeatureMap& q) {
  if (!match) return nullptr;
  STD_TORCH_CHECK(
      match->dim() == 2 && match->size(0) == q.batch && match->size(1) == q.positions &&
          match->scalar_type() == ScalarType::Long,
      "avfast.", op, ": match: expected int64 of shape [B, S]");
  if (!match->is_contiguous()) match = torch::stable::contiguous(*match);
  return static_cast<const int64_t*>(match->const_data_ptr());
}

Tensor per_row(const Tensor& x, const FeatureMap& q, ScalarType wide, const char* argument) {
  STD_TORCH_CHECK(
      x.dim() == 2 && x.size(0) == q.batch && x.size(1) == q.positions && x.scalar_type() == wide, "avfast.", op, ": ",
      argument, ": expected shape [B, S] in the accumulation dtype of q");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

}  // namespace

Tensors4 queue_nce_fwd(
    Tensor q, Tensor k, Tensor queue, std::optional<Tensor> match, double temperature, bool normalize, bool need_grad) {
  const FeatureMap queries = feature_map(q, op, "q"), keys = feature_map(k, op, "k");
  STD_TORCH_CHECK(
      keys.batch == queries.batch && keys.depth == queries.depth && keys.dtype == queries.dtype &&
          (match || keys.positions == queries.positions),
      "avfast.", op, ": k: expected the batch, width and dtype of q, and its positions where there is no match");
  const int64_t b = queries.batch, d = queries.depth, s = queries.positions;
  const ScalarType wide = accumulation_type(queries.dtype);
  const int64_t* match_data = positions(match, queries);
  if (match_data) {
    for (int64_t i = 0; i < b * s; ++i)
      STD_TORCH_CHECK(
          match_data[i] < keys.positions, "avfast.", op, ": match: expected positions below ", keys.positions, ", got ", match_data[i]);
  }
  Tensor loss = allocate({b, s}, {s, 1}, wide, q), positive = allocate({b, s}, {s, 1}, wide, q);
  Tensor lse = allocate({b, s}, {s, 1}, wide, q);
  Tensor dq = need_grad ? allocate({b, d, s}, {d * s, s, 1}, wide, q) : allocate({0}, {1}, wide, q);
  const QueueNceFwdArgs args{
      queries,
      keys,
      queue_view(queue, d),
      match_data,
      temperature,
      normalize,
      loss.mutable_data_ptr(),
      positive.mutable_data_ptr(),
      lse.mutable_data_ptr(),
      need_grad ? dq.mutable_data_ptr() : nullptr,
  };
  kernels().queue_nce_fwd(args, torch_threads());
  return {loss, positive, lse, dq};
}

Tensor queue_nce_bwd_queue(
    Tensor grad, Tensor q, Tensor queue, Tensor lse, std::optional<Tensor> match, double temperature, bool normalize) {
  const FeatureMap queries = feature_map(q, op, "q");
  const ScalarType wide = accumulation_type(queries.dtype);
  const Queue view = queue_view(queue, queries.depth);
  grad = per_row(grad, queries, wide, "grad");
  lse = per_row(lse, queries, wide, "lse");
  Tensor dqueue = allocate({view.size, queries.depth}, {queries.depth, 1}, queue.scalar_type(), queue);
  const QueueNceBwdQueueArgs args{
      queries,     view,      positions(match, queries), grad.const_data_ptr(), lse.const_data_ptr(),
      temperature, normalize, dqueue.mutable_data_ptr()};
  kernels().queue_nce_bwd_queue(args, torch_threads());
  return dqueue;
}

}  // namespace avfast
