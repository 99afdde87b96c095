// Features [B, D, S] as kernels see them.
#pragma once

#include "../kernels/contrastive/queue_nce.h"
#include "tensor_utils.h"

namespace avfast {

inline FeatureMap feature_map(const Tensor& x, const char* op, const char* argument) {
  STD_TORCH_CHECK(x.dim() == 3, "avfast.", op, ": ", argument, ": expected shape [B, D, S], got ", x.dim(), " dimension(s)");
  return {x.const_data_ptr(), dtype_of(x, op, argument), x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1), x.stride(2)};
}

}  // namespace avfast
