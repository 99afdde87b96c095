// What every binding needs: checks in one message style, dtypes, layouts, allocation, torch's thread pool.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <limits>
#include <vector>

#include "../kernels/batch_norm/batch_norm.h"

namespace avfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& x, const char* op, const char* argument) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: break;
  }
  STD_TORCH_CHECK(false, "avfast.", op, ": ", argument, ": expected a float32, float64, float16 or bfloat16 tensor");
}

inline ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return ScalarType::Double;
    case DType::f16: return ScalarType::Half;
    case DType::bf16: return ScalarType::BFloat16;
    default: return ScalarType::Float;
  }
}

// Sums and parameters: double for double activations, float for all others.
inline ScalarType accumulation_type(DType dtype) {
  return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
}

// For tests: fill what kernels must write, and guards on both sides that they must not, with NaN (or -1).
constexpr int64_t poison_guard = 64;
inline std::atomic<bool> poison_outputs{false};

inline Tensor allocate(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype, const Tensor& like) {
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto empty = [&](const std::vector<int64_t>& n, const std::vector<int64_t>& s) {
    AtenTensorHandle handle;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        int64_t(n.size()), n.data(), s.data(), static_cast<int32_t>(dtype), device_type, device_index, &handle));
    return Tensor(handle);
  };
  if (!poison_outputs.load(std::memory_order_relaxed)) return empty(sizes, strides);

  int64_t elements = 1;
  for (int64_t n : sizes) elements *= n;
  Tensor base = empty({elements + 2 * poison_guard}, {1});
  const bool integer = dtype == ScalarType::Long || dtype == ScalarType::Int || dtype == ScalarType::Byte;
  torch::stable::fill_(base, integer ? (dtype == ScalarType::Byte ? 255.0 : -1.0) : std::numeric_limits<double>::quiet_NaN());
  AtenTensorHandle view;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      base.get(), int64_t(sizes.size()), sizes.data(), strides.data(), poison_guard, &view));
  return Tensor(view);
}

inline Tensor allocate_vector(int64_t n, ScalarType dtype, const Tensor& like) {
  return allocate({n}, {1}, dtype, like);
}

// A tensor in one of the two orders the kernels read, and how they see it. `tensor` is the input itself where that is
// already dense in such an order, else a contiguous copy.
struct Dense {
  Tensor tensor;
  Activation view;

  static Dense of(const Tensor& x, const char* op, const char* argument) {
    const DType dtype = dtype_of(x, op, argument);
    STD_TORCH_CHECK(x.dim() >= 2, "avfast.", op, ": ", argument, ": expected shape [N, C, *], got ", x.dim(), " dimension(s)");
    const bool contiguous = x.is_contiguous();
    const bool lanes = !contiguous && channels_innermost(x);
    Dense out{contiguous || lanes ? x : torch::stable::contiguous(x), {}};
    const auto sizes = out.tensor.sizes();
    int64_t positions = 1;
    for (int64_t d = 2; d < x.dim(); ++d) positions *= sizes[d];
    out.view = {sizes[0], sizes[1], positions, lanes || positions == 1 ? Activation::lanes : Activation::rows, dtype};
    return out;
  }

  // Uninitialised, with this tensor's sizes, strides and dtype.
  Tensor empty_like() const {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    return allocate({sizes.begin(), sizes.end()}, {strides.begin(), strides.end()}, tensor.scalar_type(), tensor);
  }

  // `other` in exactly this order, copied only if it is not.
  Tensor match(const Tensor& other) const {
    bool same = other.scalar_type() == tensor.scalar_type() && other.dim() == tensor.dim();
    for (int64_t d = 0; same && d < tensor.dim(); ++d) {
      STD_TORCH_CHECK(other.size(d) == tensor.size(d), "avfast: grad: expected the shape of x, dimension ", d, " differs");
      same = other.size(d) == 1 || other.stride(d) == tensor.stride(d);
    }
    if (same) return other;
    Tensor copy = empty_like();
    torch::stable::copy_(copy, other);
    return copy;
  }

 private:
  static bool channels_innermost(const Tensor& x) {
    int64_t expected = 1;
    auto fits = [&](int64_t d) {
      const bool ok = x.size(d) == 1 || x.stride(d) == expected;
      expected *= x.size(d);
      return ok;
    };
    if (!fits(1)) return false;
    for (int64_t d = x.dim() - 1; d >= 2; --d)
      if (!fits(d)) return false;
    return fits(0);
  }
};

// A parameter vector of n (or 1) values in the accumulation type, contiguous.
inline Tensor parameter(const Tensor& p, int64_t n, bool or_one, ScalarType dtype, const char* op, const char* argument) {
  STD_TORCH_CHECK(
      p.dim() == 1 && (p.numel() == n || (or_one && p.numel() == 1)), "avfast.", op, ": ", argument, ": expected shape [", n,
      or_one ? "] or [1]" : "]");
  STD_TORCH_CHECK(p.scalar_type() == dtype, "avfast.", op, ": ", argument, ": expected the accumulation dtype of x");
  return p.is_contiguous() ? p : torch::stable::contiguous(p);
}

inline Parallel torch_threads() {
  return {[](int64_t tasks, Parallel::Body body, void* context) {
    torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
  }};
}

}  // namespace avfast
