// Every batch-norm layer of a model in one launch.
//
// Idea: one block per layer, so that its three counts are finished inside the block and nothing has to be zeroed first;
// as many threads as the widest layer has channels (1024 at most), so a layer is one or two rounds of loads. The plan's
// descriptors already lie on the device: no pointer is passed by value and any number of layers is one launch.
//
// Cost model: 16 bytes read and 9 written per channel; ResNet-50 (53 layers, 26,560 channels) moves 0.7 MB, which is
// nothing: the time is the launch plus two dependent reads (descriptor, values). Not yet measured on a GPU.
//
// Reference: avfast.reference.batch_norm.bn_scan. Comparisons are on bit patterns, so that 1e-40 is a threshold like any
// other whatever a compiler flag says about denormals. Phi is normcdff of the CUDA library (5 ulp); no approximate
// intrinsic is used.

#include "../common/cuda_utils.cuh"
#include "batch_norm.h"

namespace avfast {
namespace {

constexpr int32_t infinity_bits = 0x7f800000;

__device__ __forceinline__ float read(const void* p, DType dtype, int64_t i, float absent) {
  if (!p) return absent;
  switch (dtype) {
    case DType::f32: return static_cast<const float*>(p)[i];
    case DType::f64: return static_cast<float>(static_cast<const double*>(p)[i]);  // below the float range it is 0
    case DType::f16: return to_acc(static_cast<const f16_t*>(p)[i]);
    case DType::bf16: return to_acc(static_cast<const bf16_t*>(p)[i]);
  }
  return absent;
}

__device__ __forceinline__ int32_t magnitude_bits(float v) { return __float_as_int(v) & 0x7fffffff; }

__global__ void __launch_bounds__(1024) bn_scan_kernel(const __grid_constant__ BnScanArgs args) {
  __shared__ int32_t counts[bn_counts];
  if (threadIdx.x < bn_counts) counts[threadIdx.x] = 0;
  __syncthreads();

  const BnLayer layer = args.layers[blockIdx.x];
  const int32_t limit = __float_as_int(args.threshold);
  int32_t abnormal = 0, non_finite = 0, collapsed = 0;
  for (int64_t c = threadIdx.x; c < layer.channels; c += blockDim.x) {
    const float gamma = read(layer.weight, layer.affine_dtype, c, 1.0f);
    const float beta = read(layer.bias, layer.affine_dtype, c, 0.0f);
    const float mean = read(layer.running_mean, layer.stats_dtype, c, 0.0f);
    const float var = read(layer.running_var, layer.stats_dtype, c, 1.0f);

    // Magnitudes order as integers, with every NaN above infinity: never small, and it wins the maximum.
    const int32_t g = magnitude_bits(gamma), b = magnitude_bits(beta), v = magnitude_bits(var);
    const int32_t larger = g > b ? g : b;
    const bool small = larger <= limit;
    const bool bad = larger >= infinity_bits || magnitude_bits(mean) >= infinity_bits || v >= infinity_bits;
    // As signed integers negative floats lie below all others, so a negative variance counts as collapsed.
    const bool flat = __float_as_int(var) <= limit && v <= infinity_bits;
    abnormal += small;
    non_finite += bad;
    collapsed += flat;

    float live = normcdff(beta / fabsf(gamma));
    if (g == 0 && b <= infinity_bits) live = __float_as_int(beta) > 0 ? 1.0f : 0.0f;
    const int64_t at = layer.offset + c;
    args.flags[at] = (small ? bn_abnormal : 0) | (bad ? bn_non_finite : 0) | (flat ? bn_collapsed : 0);
    args.score[at] = __int_as_float(larger);
    args.live[at] = live;
  }

  // Integer sums do not depend on their order.
  if (abnormal) atomicAdd(&counts[0], abnormal);
  if (non_finite) atomicAdd(&counts[1], non_finite);
  if (collapsed) atomicAdd(&counts[2], collapsed);
  __syncthreads();
  int32_t* out = args.counts + static_cast<int64_t>(blockIdx.x) * bn_counts;
  if (threadIdx.x < bn_counts) out[threadIdx.x] = counts[threadIdx.x];
}

}  // namespace

int bn_scan_cuda(const BnScanArgs& args, void* stream) {
  const int64_t wanted = ceil_div(args.max_channels, warp_size) * warp_size;
  const int threads = static_cast<int>(wanted < 64 ? 64 : wanted > 1024 ? 1024 : wanted);
  return launch(bn_scan_kernel, args.num_layers, threads, stream, args);
}

}  // namespace avfast
