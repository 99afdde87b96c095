#include "in_batch.h"

namespace avfast {

namespace {

constexpr const char* op = "pair_nce";

// The arguments both passes have in common, and what keeps their pointers alive.
struct Pair {
  std::optional<LabelRanks> ranks;
  PairNceArgs args;
  ScalarType wide;

  Pair(
      const Tensor& a, const Tensor& b, const Tensor& temperature, const std::optional<Tensor>& labels_a,
      const std::optional<Tensor>& labels_b, int64_t positive, int64_t exclude, int64_t distance, bool normalize, bool columns)
      : args{rows_of(a, op, "a"), rows_of(b, op, "b")}, wide(accumulation_type(args.a.dtype)) {
    check_alike(args.a, args.b, op);
    STD_TORCH_CHECK(labels_a.has_value() == labels_b.has_value(), "avfast.", op, ": labels: expected both or neither");
    STD_TORCH_CHECK(!(labels_a && columns), "avfast.", op, ": columns: expected False with labels");
    STD_TORCH_CHECK(distance == 0 || distance == 1, "avfast.", op, ": distance: expected 0 or 1, got ", distance);
    if (labels_a) ranks.emplace(*labels_a, args.a.count, *labels_b, args.b.count, op);
    else check_positive(args.a, args.b, positive, op);
    args.temperature = wide_scalar(temperature, wide, op, "temperature");
    args.labels_a = ranks ? ranks->a.data() : nullptr;
    args.labels_b = ranks ? ranks->b.data() : nullptr;
    args.count = nullptr;
    args.positive = positive;
    args.exclude = exclude;
    args.l2 = distance == 1;
    args.normalize = normalize;
    args.columns = columns;
    args.logits = nullptr;
    args.lengths = nullptr;
    args.known = false;
  }

  // Blocks of either side, and the rows of both in one.
  std::array<int64_t, 4> kept_sizes() const {
    const auto blocks = [](int64_t rows) { return (rows + kept_block - 1) / kept_block; };
    return {blocks(args.b.count), blocks(args.a.count), kept_block, kept_block};
  }
  int64_t lengths() const { return 2 * args.a.count + args.b.count; }

  void check_kept(const Tensor& logits, const Tensor& lengths_of) const {
    const auto sizes = logits.sizes();
    const auto expected = kept_sizes();
    STD_TORCH_CHECK(
        std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()) && logits.scalar_type() == wide &&
            lengths_of.dim() == 1 && lengths_of.numel() == lengths() && lengths_of.scalar_type() == ScalarType::Double,
        "avfast.", op, ": logits, lengths: expected those pair_nce_fwd kept");
  }
};

Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

}  // namespace

Tensors6 pair_nce_fwd(
    Tensor a, Tensor b, Tensor temperature, std::optional<Tensor> labels_a, std::optional<Tensor> labels_b, int64_t positive,
    int64_t exclude, int64_t distance, bool normalize, bool columns, bool keep) {
  Pair pair(a, b, temperature, labels_a, labels_b, positive, exclude, distance, normalize, columns);
  const int64_t n = pair.args.a.count, m = pair.args.b.count;
  Tensor logits = keep ? allocate_dense(pair.kept_sizes(), pair.wide, a) : allocate_vector(0, pair.wide, a);
  Tensor lengths = allocate_vector(keep ? pair.lengths() : 0, ScalarType::Double, a);
  if (keep) {
    pair.args.logits = logits.mutable_data_ptr();
    pair.args.lengths = static_cast<double*>(lengths.mutable_data_ptr());
  }
  Tensor row_lse = allocate_vector(n, pair.wide, a), col_lse = allocate_vector(columns ? m : 0, pair.wide, a);
  Tensor target = allocate_vector(n, pair.wide, a), count = allocate_vector(n, ScalarType::Int, a);
  auto* counts = static_cast<int32_t*>(count.mutable_data_ptr());
  if (pair.ranks) {
    pair.ranks->count(counts, exclude);
    pair.args.count = counts;
  } else {
    std::fill_n(counts, n, 1);
  }
  const PairNceFwdArgs args{
      pair.args, row_lse.mutable_data_ptr(), columns ? col_lse.mutable_data_ptr() : nullptr, target.mutable_data_ptr()};
  kernels().pair_nce_fwd(args, torch_threads());
  return {row_lse, col_lse, target, count, logits, lengths};
}

Tensors3 pair_nce_bwd(
    Tensor grad_row, Tensor grad_col, Tensor a, Tensor b, Tensor temperature, Tensor row_lse, Tensor col_lse,
    std::optional<Tensor> labels_a, std::optional<Tensor> labels_b, Tensor count, int64_t positive, int64_t exclude,
    int64_t distance, bool normalize, bool columns, std::optional<Tensor> logits,
    std::optional<Tensor> lengths, bool need_a, bool need_b) {
  Pair pair(a, b, temperature, labels_a, labels_b, positive, exclude, distance, normalize, columns);
  const int64_t n = pair.args.a.count, m = pair.args.b.count;
  STD_TORCH_CHECK(logits.has_value() == lengths.has_value(), "avfast.", op, ": lengths: expected where logits are");
  if (logits && logits->numel()) {
    pair.check_kept(*logits, *lengths);
    logits = dense(*logits), lengths = dense(*lengths);
    pair.args.logits = const_cast<void*>(logits->const_data_ptr());
    pair.args.lengths = static_cast<double*>(const_cast<void*>(lengths->const_data_ptr()));
    pair.args.known = true;
  }
  grad_row = wide_vector(grad_row, n, pair.wide, op, "grad_row");
  row_lse = wide_vector(row_lse, n, pair.wide, op, "row_lse");
  if (columns) {
    grad_col = wide_vector(grad_col, m, pair.wide, op, "grad_col");
    col_lse = wide_vector(col_lse, m, pair.wide, op, "col_lse");
  }
  if (pair.ranks) {
    STD_TORCH_CHECK(
        count.dim() == 1 && count.numel() == n && count.scalar_type() == ScalarType::Int && count.is_contiguous(), "avfast.", op,
        ": count: expected contiguous int32 of shape [N]");
    pair.args.count = static_cast<const int32_t*>(count.const_data_ptr());
  }
  Tensor da = need_a ? gradient_like(a) : allocate_vector(0, a.scalar_type(), a);
  Tensor db = need_b ? gradient_like(b) : allocate_vector(0, b.scalar_type(), b);
  Tensor dtemperature = allocate_vector(1, pair.wide, a);
  const PairNceBwdArgs args{
      pair.args,
      grad_row.const_data_ptr(),
      columns ? grad_col.const_data_ptr() : nullptr,
      row_lse.const_data_ptr(),
      columns ? col_lse.const_data_ptr() : nullptr,
      need_a ? da.mutable_data_ptr() : nullptr,
      need_b ? db.mutable_data_ptr() : nullptr,
      dtemperature.mutable_data_ptr(),
  };
  kernels().pair_nce_bwd(args, torch_threads());
  return {da, db, dtemperature};
}

}  // namespace avfast
