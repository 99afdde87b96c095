// Batch-norm family: parameter structs and launchers. The only contract shared by csrc/ and every backend.
//
//   bn_scan         one pass over gamma, beta, running mean and variance of many layers
//   channel_stats   mean, variance, zero count and dead-sample count per channel, one read
//   blended_bn      y = act((alpha g1 + (1-alpha) g2) xhat + alpha b1 + (1-alpha) b2), batch statistics
//   channel_affine  y = act(scale x + shift): the same layer in evaluation or with frozen statistics
//
// Formulas and derivations: NOTES.md.
#pragma once

#include "../common/types.h"

namespace avfast {

// ---------------------------------------------------------------------------------------------- bn_scan

// One batch-norm layer. A null pointer means the layer lacks that tensor: gamma 1, beta 0, mean 0, variance 1.
struct BnLayer {
  const void* weight;
  const void* bias;
  const void* running_mean;
  const void* running_var;
  int64_t channels;
  int64_t offset;  // first channel of this layer in the packed outputs
  DType affine_dtype;
  DType stats_dtype;
};

enum BnFlag : uint8_t {
  bn_abnormal = 1,    // |gamma| <= threshold and |beta| <= threshold
  bn_non_finite = 2,  // NaN or infinity in any of the four tensors
  bn_collapsed = 4,   // running variance <= threshold: the layer before it emits a constant
};
constexpr int bn_counts = 3;  // per layer: abnormal, non-finite, collapsed

struct BnScanArgs {
  const BnLayer* layers;  // on the device where the kernel runs
  int64_t num_layers;
  int64_t max_channels;  // widest layer
  float threshold;       // may be denormal: compare bit patterns, never flush
  uint8_t* flags;        // [channels]
  float* score;          // [channels] max(|gamma|, |beta|)
  float* live;           // [channels] Phi(beta / |gamma|)
  int32_t* counts;       // [num_layers, bn_counts]
};

// --------------------------------------------------------------------------------------- channel_stats

struct ChannelStatsArgs {
  Activation x;
  const void* data;
  double dead_threshold;  // an element with |x| <= dead_threshold counts as zero
  double* mean;           // [C]
  double* var;            // [C] biased (divided by N*S)
  int64_t* zeros;         // [C] elements
  int64_t* dead;          // [C] samples whose S elements are all zero
};

// ------------------------------------------------------------------------------------------ blended_bn

// Accumulation type of the parameters: float for f32/f16/bf16 activations, double for f64.
struct BlendedBnParams {
  const void* weight;      // [C] gamma of the pre-trained layer
  const void* bias;        // [C]
  const void* new_weight;  // [C] gamma of the fresh layer
  const void* new_bias;    // [C]
  const void* alpha;       // [C] or [1]
  bool alpha_per_channel;
};

struct BlendedBnFwdArgs {
  Activation x;
  BlendedBnParams params;
  double eps;
  bool relu;
  const void* data;
  void* y;     // same order and dtype as x
  void* mean;  // [C] accumulation type
  void* var;   // [C] biased
};

struct BlendedBnBwdArgs {
  Activation x;
  BlendedBnParams params;
  double eps;
  bool relu;
  const void* grad;  // same order and dtype as x
  const void* data;
  const void* mean;  // [C] as the forward returned them
  const void* var;
  void* dx;          // same order and dtype as x
  void* dweight;     // [C] accumulation type, as the five below
  void* dbias;
  void* dnew_weight;
  void* dnew_bias;
  void* dalpha;      // [C] always; the caller sums it when alpha is a scalar
};

// -------------------------------------------------------------------------------------- channel_affine

struct ChannelAffineFwdArgs {
  Activation x;
  bool relu;
  const void* data;
  const void* scale;  // [C] accumulation type
  const void* shift;  // [C]
  void* y;
};

struct ChannelAffineBwdArgs {
  Activation x;
  bool relu;
  const void* grad;
  const void* data;
  const void* scale;
  const void* shift;
  void* dx;
  void* dscale;  // [C] accumulation type
  void* dshift;  // [C]
};

// -------------------------------------------------------------------------------------------- CUDA side
// Every launcher returns a cudaError_t as int and never synchronises. `workspace` is device memory of the size the
// matching *_workspace function gives (bytes; a function of the shape alone, so results do not depend on the card's load).

int bn_scan_cuda(const BnScanArgs& args, void* stream);

int64_t channel_stats_cuda_workspace(const Activation& x);
int channel_stats_cuda(const ChannelStatsArgs& args, void* workspace, void* stream);

int64_t blended_bn_fwd_cuda_workspace(const Activation& x);
int blended_bn_fwd_cuda(const BlendedBnFwdArgs& args, void* workspace, void* stream);

int64_t blended_bn_bwd_cuda_workspace(const Activation& x);
int blended_bn_bwd_cuda(const BlendedBnBwdArgs& args, void* workspace, void* stream);

int channel_affine_fwd_cuda(const ChannelAffineFwdArgs& args, void* stream);

int64_t channel_affine_bwd_cuda_workspace(const Activation& x);
int channel_affine_bwd_cuda(const ChannelAffineBwdArgs& args, void* workspace, void* stream);

}  // namespace avfast
