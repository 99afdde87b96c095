#include "../kernels/correlation/correlate.h"

#include "launch.h"
#include "ops.h"

namespace avfast {

namespace {

constexpr const char* op = "correlate";

// Heads of q [B, N, H, d] or of k, v [B, E, N, H, d]; `tensor` is a contiguous copy where channels are not neighbours.
struct Heads {
  Tensor tensor;
  HeadMap map;

  Heads(const Tensor& x, int64_t dimensions, const char* argument) : tensor(x) {
    STD_TORCH_CHECK(x.dim() == dimensions, "avfast.", op, ": ", argument, ": expected ", dimensions, " dimensions");
    if (x.size(dimensions - 1) > 1 && x.stride(dimensions - 1) != 1) tensor = torch::stable::contiguous(x);
    const int64_t e = dimensions == 5 ? tensor.stride(1) : 0;
    map = {tensor.const_data_ptr(), tensor.stride(0), e, tensor.stride(dimensions - 3), tensor.stride(dimensions - 2)};
  }
};

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

struct Inputs {
  Heads q, k, v;
  std::optional<Tensor> mask;
  CorrelateArgs args;

  Inputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const std::optional<Tensor>& key_mask, double scale, int64_t map)
      : q(q_, 4, "q"), k(k_, 5, "k"), v(v_, 5, "v") {
    const DType dtype = dtype_of(q_, op, "q");
    const int64_t b = q_.size(0), e = k_.size(1), nk = k_.size(2), h = q_.size(2), d = q_.size(3);
    STD_TORCH_CHECK(h > 0 && d > 0, "avfast.", op, ": q: expected at least one head and channel");
    const auto agrees = [&](const Tensor& x, const char* argument) {
      STD_TORCH_CHECK(dtype_of(x, op, argument) == dtype, "avfast.", op, ": ", argument, ": expected the dtype of q");
      STD_TORCH_CHECK(
          x.size(0) == b && x.size(1) == e && x.size(2) == nk && x.size(3) == h && x.size(4) == d, "avfast.", op, ": ", argument,
          ": expected shape [", b, ", ", e, ", ", nk, ", ", h, ", ", d, "]");
    };
    agrees(k_, "k");
    agrees(v_, "v");
    STD_TORCH_CHECK(nk <= INT32_MAX, "avfast.", op, ": k: expected fewer than 2^31 keys");
    STD_TORCH_CHECK(map >= 0 && map <= 3, "avfast.", op, ": map: expected 0 to 3, got ", map);
    if (key_mask) {
      STD_TORCH_CHECK(
          key_mask->scalar_type() == ScalarType::Bool && key_mask->dim() == 3 && key_mask->size(0) == b &&
              key_mask->size(1) == e && key_mask->size(2) == nk,
          "avfast.", op, ": key_mask: expected a bool tensor of shape [", b, ", ", e, ", ", nk, "]");
      mask = dense(*key_mask);
    }
    const bool* allowed = mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr;
    args = {dtype, b, e, q_.size(1), nk, h, d, q.map, k.map, v.map, allowed, scale, CorrelateArgs::Map(map)};
  }
};

// A gradient or a saved value, dense, of so many elements.
Tensor expect(const Tensor& x, int64_t elements, DType dtype, const char* argument) {
  STD_TORCH_CHECK(
      dtype_of(x, op, argument) == dtype && x.numel() == elements, "avfast.", op, ": ", argument, ": expected ", elements,
      " elements of the type of what it belongs to");
  return dense(x);
}

}  // namespace

Tensors3 correlate_fwd(Tensor q, Tensor k, Tensor v, std::optional<Tensor> key_mask, double scale, int64_t map) {
  const Inputs in(q, k, v, key_mask, scale, map);
  const auto& [dtype, b, e, nq, nk, h, d, q_, k_, v_, mask, scale_, map_] = in.args;
  const ScalarType wide = accumulation_type(dtype);
  const bool probabilities = map_ == CorrelateArgs::mean_prob;
  Tensor out = allocate({b, e, nq, h * d}, {e * nq * h * d, nq * h * d, h * d, 1}, q.scalar_type(), q);
  Tensor lse = allocate({b, e, h, nq}, {e * h * nq, h * nq, nq, 1}, wide, q);
  Tensor heat = map_ == CorrelateArgs::none ? allocate_vector(0, wide, q)
                : probabilities             ? allocate({b, e, nq, nk}, {e * nq * nk, nq * nk, nk, 1}, wide, q)
                                            : allocate({b, e, nq}, {e * nq, nq, 1}, wide, q);
  const CorrelateFwdArgs args{in.args, out.mutable_data_ptr(), lse.mutable_data_ptr(), heat.mutable_data_ptr()};
  kernels().correlate_fwd(args, torch_threads());
  return {out, lse, heat};
}

Tensors3 correlate_bwd(
    Tensor grad_out, Tensor grad_map, Tensor q, Tensor k, Tensor v, std::optional<Tensor> key_mask, Tensor lse, double scale,
    int64_t map) {
  const Inputs in(q, k, v, key_mask, scale, map);
  const auto& [dtype, b, e, nq, nk, h, d, q_, k_, v_, mask, scale_, map_] = in.args;
  const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t rows = b * e * nq;
  const Tensor grad = expect(grad_out, rows * h * d, dtype, "grad_out"), sums = expect(lse, rows * h, wide, "lse");
  const Tensor heat = expect(
      grad_map, map_ == CorrelateArgs::none ? 0 : map_ == CorrelateArgs::mean_prob ? rows * nk : rows, wide, "grad_map");
  Tensor dq = allocate({b, nq, h, d}, {nq * h * d, h * d, d, 1}, q.scalar_type(), q);
  const std::vector<int64_t> sizes{b, e, nk, h, d}, strides{e * nk * h * d, nk * h * d, h * d, d, 1};
  Tensor dk = allocate(sizes, strides, q.scalar_type(), q), dv = allocate(sizes, strides, q.scalar_type(), q);
  const CorrelateBwdArgs args{
      in.args,
      grad.const_data_ptr(),
      heat.const_data_ptr(),
      sums.const_data_ptr(),
      dq.mutable_data_ptr(),
      dk.mutable_data_ptr(),
      dv.mutable_data_ptr()};
  kernels().correlate_bwd(args, torch_threads());
  return {dq, dk, dv};
}

}  // namespace avfast
