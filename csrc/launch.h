// Device-agnostic launch: the CPU table, or a CUDA launcher that is a null pointer when CUDA was not compiled in.
#pragma once

#include "../kernels/isa/table.h"
#include "cuda_stream.h"

namespace avfast {

// Runs `cpu(table, parallel)` or `cuda(stream)` by the device of x.
template <typename Cpu, typename Cuda>
void launch(const Tensor& x, const char* op, Cpu&& cpu, Cuda&& cuda) {
  if (!x.is_cuda()) {
    cpu(kernels(), torch_threads());
    return;
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_launch(cuda(current_cuda_stream(x)), op);
}

}  // namespace avfast
