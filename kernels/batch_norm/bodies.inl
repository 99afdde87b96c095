// The CPU bodies of batch norm, and their places in the table; included by isa/, inside one instruction set's namespace.
#include "bn_scan_cpu.inl"
#include "channel_reduce_cpu.inl"
#include "channel_stats_cpu.inl"
#include "channel_affine_cpu.inl"
#include "blended_bn_cpu.inl"

void fill_batch_norm(KernelTable& table) {
  table.bn_scan = bn_scan_cpu;
  table.channel_stats = channel_stats_cpu;
  table.blended_bn_fwd = blended_bn_fwd_cpu;
  table.blended_bn_bwd = blended_bn_bwd_cpu;
  table.channel_affine_fwd = channel_affine_fwd_cpu;
  table.channel_affine_bwd = channel_affine_bwd_cpu;
}
