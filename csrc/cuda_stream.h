// The current CUDA stream and a launch check, without linking a CUDA library.
#pragma once

#include "tensor_utils.h"

// Exported by torch's CUDA library only. Weak: null beside a CPU build of torch, where nothing here is ever called.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace avfast {

inline void* current_cuda_stream(const Tensor& x) {
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream != nullptr, "avfast: a CUDA tensor arrived, but this torch has no CUDA library");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

inline void check_launch(int error, const char* op) {
  STD_TORCH_CHECK(error == 0, "avfast.", op, ": the CUDA launch failed with error ", error);
}

// Device scratch from torch's caching allocator; alive as long as the tensor.
inline Tensor cuda_workspace(int64_t bytes, const Tensor& like) {
  return allocate({bytes}, {1}, ScalarType::Byte, like);
}

}  // namespace avfast
