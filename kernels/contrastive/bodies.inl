// The CPU bodies of the contrastive losses, and their places in the table; included by isa/, inside one
// instruction set's namespace.
#include "row_panels.inl"
#include "key_blocks.inl"
#include "score_tiles.inl"
#include "queue_nce_cpu.inl"
#include "queue_nce_bwd_queue_cpu.inl"
#include "dense_match_cpu.inl"
#include "in_batch_rows.inl"
#include "in_batch_logits.inl"
#include "in_batch_halves.inl"
#include "in_batch_tiles.inl"
#include "in_batch_rounds.inl"
#include "in_batch_gradient.inl"
#include "in_batch_kept.inl"
#include "softmax_sums.inl"
#include "softmax_weights.inl"
#include "softmax_side.inl"
#include "pair_nce_cpu.inl"
#include "pair_nce_bwd_cpu.inl"
#include "self_nce_cpu.inl"
#include "sigmoid_nce_cpu.inl"

void fill_contrastive(KernelTable& table) {
  table.queue_nce_fwd = queue_nce_fwd_cpu;
  table.queue_nce_bwd_queue = queue_nce_bwd_queue_cpu;
  table.dense_match = dense_match_cpu;
  table.pair_nce_fwd = pair_nce_fwd_cpu;
  table.pair_nce_bwd = pair_nce_bwd_cpu;
  table.self_nce_fwd = self_nce_fwd_cpu;
  table.self_nce_bwd = self_nce_bwd_cpu;
  table.sigmoid_nce = sigmoid_nce_cpu;
}
