// Kernels read through typed pointers. Memory of other programs (a NumPy view of a packed record, a buffer with a header of odd length) may
// start between two elements: such an argument is copied before an op sees it.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "tensor_utils.h"

namespace avfast {

inline bool is_aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % x.element_size() == 0;
}

template <typename T>
T aligned(T other) {
  return other;
}
inline Tensor aligned(Tensor x) { return is_aligned(x) ? x : torch::stable::clone(x); }
inline std::optional<Tensor> aligned(std::optional<Tensor> x) {
  if (x) x = aligned(std::move(*x));
  return x;
}
inline std::vector<Tensor> aligned(std::vector<Tensor> list) {
  for (Tensor& x : list) x = aligned(std::move(x));
  return list;
}

// The op with every tensor aligned. Not for one that writes to its arguments or keeps them.
template <auto op>
struct Aligned;
template <typename Result, typename... Args, Result (*op)(Args...)>
struct Aligned<op> {
  static Result call(Args... args) { return op(aligned(std::move(args))...); }
};

}  // namespace avfast
