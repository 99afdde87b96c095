// Every CPU body and the table that names them; included inside one instruction set's namespace.
#include "../common/simd.inl"
#include "../common/vector_math.inl"
#include "../common/gemm_tile.inl"
#include "../common/scratch.inl"
#include "../common/pack.inl"
#include "../common/peak.inl"
#include "../batch_norm/bn_scan_cpu.inl"
#include "../batch_norm/channel_reduce_cpu.inl"
#include "../batch_norm/channel_stats_cpu.inl"
#include "../batch_norm/channel_affine_cpu.inl"
#include "../batch_norm/blended_bn_cpu.inl"
#include "../contrastive/row_panels.inl"
#include "../contrastive/key_blocks.inl"
#include "../contrastive/score_tiles.inl"
#include "../contrastive/queue_nce_cpu.inl"
#include "../contrastive/queue_nce_bwd_queue_cpu.inl"
#include "../contrastive/dense_match_cpu.inl"
#include "../contrastive/in_batch_rows.inl"
#include "../contrastive/in_batch_logits.inl"
#include "../contrastive/in_batch_halves.inl"
#include "../contrastive/in_batch_tiles.inl"
#include "../contrastive/in_batch_rounds.inl"
#include "../contrastive/in_batch_gradient.inl"
#include "../contrastive/in_batch_kept.inl"
#include "../contrastive/softmax_sums.inl"
#include "../contrastive/softmax_weights.inl"
#include "../contrastive/softmax_side.inl"
#include "../contrastive/pair_nce_cpu.inl"
#include "../contrastive/pair_nce_bwd_cpu.inl"
#include "../contrastive/self_nce_cpu.inl"
#include "../contrastive/sigmoid_nce_cpu.inl"
#include "../correlation/correlate_tiles.inl"
#include "../correlation/correlate_cpu.inl"
#include "../correlation/correlate_bwd_cpu.inl"
#include "../correlation/exemplar_crop_cpu.inl"
#include "../correlation/map_axis.inl"
#include "../correlation/map_walk.inl"
#include "../correlation/binary_pixels.inl"
#include "../correlation/map_loss_cpu.inl"
#include "../correlation/upsample_ce_cpu.inl"
#include "../fusion/patch_mask_cpu.inl"
#include "../fusion/masked_fusion_cpu.inl"
#include "../fusion/masked_fusion_bwd_cpu.inl"
#include "../fusion/concat_linear_cpu.inl"
#include "../fusion/concat_linear_bwd_cpu.inl"

inline KernelTable make_table(const char* isa) {
  return {
      isa,
      multiply_add_cpu,
      bn_scan_cpu,
      channel_stats_cpu,
      blended_bn_fwd_cpu,
      blended_bn_bwd_cpu,
      channel_affine_fwd_cpu,
      channel_affine_bwd_cpu,
      queue_nce_fwd_cpu,
      queue_nce_bwd_queue_cpu,
      dense_match_cpu,
      pair_nce_fwd_cpu,
      pair_nce_bwd_cpu,
      self_nce_fwd_cpu,
      self_nce_bwd_cpu,
      sigmoid_nce_cpu,
      correlate_fwd_cpu,
      correlate_bwd_cpu,
      patch_mask_cpu,
      masked_fusion_fwd_cpu,
      masked_fusion_bwd_cpu,
      concat_linear_fwd_cpu,
      concat_linear_bwd_cpu,
      exemplar_crop_cpu,
      box_bce_cpu,
      upsample_ce_cpu,
  };
}
