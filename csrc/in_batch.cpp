#include "in_batch.h"

namespace avfast {

namespace {

std::vector<int64_t> labels_of(const Tensor& labels, int64_t n, const char* op) {
  STD_TORCH_CHECK(
      labels.dim() == 1 && labels.numel() == n && labels.scalar_type() == ScalarType::Long, "avfast.", op,
      ": labels: expected int64 of shape [", n, "]");
  const auto* data = static_cast<const int64_t*>(labels.const_data_ptr());
  std::vector<int64_t> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = data[i * labels.stride(0)];
  return out;
}

}  // namespace

LabelRanks::LabelRanks(const Tensor& labels_a, int64_t n, const Tensor& labels_b, int64_t m, const char* op) {
  const std::vector<int64_t> of_a = labels_of(labels_a, n, op), of_b = labels_of(labels_b, m, op);
  std::vector<int64_t> known = of_b;
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  const auto absent = int32_t(known.size());
  const auto rank = [&](int64_t label) {
    const auto at = std::lower_bound(known.begin(), known.end(), label);
    return at != known.end() && *at == label ? int32_t(at - known.begin()) : absent;
  };
  std::transform(of_a.begin(), of_a.end(), std::back_inserter(a), rank);
  std::transform(of_b.begin(), of_b.end(), std::back_inserter(b), rank);
}

void LabelRanks::count(int32_t* out, int64_t exclude) const {
  std::vector<int32_t> times(b.size() + 1);
  for (int32_t label : b) ++times[label];
  for (int64_t i = 0; i < int64_t(a.size()); ++i) {
    const int64_t left_out = exclude + i;
    const bool own = exclude >= 0 && left_out < int64_t(b.size()) && b[left_out] == a[i];
    out[i] = times[a[i]] - int32_t(own);
  }
}

}  // namespace avfast
