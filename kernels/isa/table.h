// One table of CPU launchers per instruction set; csrc picks one at run time.
#pragma once

#include "../batch_norm/batch_norm.h"
#include "../contrastive/dense_match.h"
#include "../contrastive/in_batch.h"
#include "../contrastive/queue_nce.h"
#include "../correlation/correlate.h"
#include "../correlation/exemplar_crop.h"
#include "../correlation/map_loss.h"
#include "../fusion/concat_linear.h"
#include "../fusion/masked_fusion.h"
#include "../fusion/patch_mask.h"
#include "../pictures/recolour.h"
#include "../pictures/yuv_to_rgb.h"

namespace avfast {

struct KernelTable {
  const char* isa;  // "base", "avx2", "avx512", "avx512_bf16"
  int64_t (*multiply_add)(bool bf16, int64_t rounds);
  void (*bn_scan)(const BnScanArgs&, const Parallel&);
  void (*channel_stats)(const ChannelStatsArgs&, const Parallel&);
  void (*blended_bn_fwd)(const BlendedBnFwdArgs&, const Parallel&);
  void (*blended_bn_bwd)(const BlendedBnBwdArgs&, const Parallel&);
  void (*channel_affine_fwd)(const ChannelAffineFwdArgs&, const Parallel&);
  void (*channel_affine_bwd)(const ChannelAffineBwdArgs&, const Parallel&);
  void (*queue_nce_fwd)(const QueueNceFwdArgs&, const Parallel&);
  void (*queue_nce_bwd_queue)(const QueueNceBwdQueueArgs&, const Parallel&);
  void (*dense_match)(const DenseMatchArgs&, const Parallel&);
  void (*pair_nce_fwd)(const PairNceFwdArgs&, const Parallel&);
  void (*pair_nce_bwd)(const PairNceBwdArgs&, const Parallel&);
  void (*self_nce_fwd)(const SelfNceFwdArgs&, const Parallel&);
  void (*self_nce_bwd)(const SelfNceBwdArgs&, const Parallel&);
  void (*sigmoid_nce)(const SigmoidNceArgs&, const Parallel&);
  void (*correlate_fwd)(const CorrelateFwdArgs&, const Parallel&);
  void (*correlate_bwd)(const CorrelateBwdArgs&, const Parallel&);
  void (*patch_mask)(const PatchMaskArgs&, const Parallel&);
  void (*masked_fusion_fwd)(const FusionFwdArgs&, const Parallel&);
  void (*masked_fusion_bwd)(const FusionBwdArgs&, const Parallel&);
  void (*concat_linear_fwd)(const ConcatLinearFwdArgs&, const Parallel&);
  void (*concat_linear_bwd)(const ConcatLinearBwdArgs&, const Parallel&);
  void (*exemplar_crop)(const ExemplarCropArgs&, const Parallel&);
  void (*box_bce)(const BoxBceArgs&, const Parallel&);
  void (*upsample_ce)(const UpsampleCeArgs&, const Parallel&);
  void (*yuv_to_rgb)(const YuvToRgbArgs&, const Parallel&);
  void (*recolour)(const RecolourArgs&, const Parallel&);
};

const KernelTable& base_table();
const KernelTable& avx2_table();
const KernelTable& avx512_table();
const KernelTable& avx512_bf16_table();

// The table in use: the best this machine has, unless force_isa chose another.
const KernelTable& kernels();
// nullptr or "" returns to the best. False if this machine cannot run that set, or there is no such set.
bool force_isa(const char* name);
bool machine_has_isa(const char* name);

}  // namespace avfast
