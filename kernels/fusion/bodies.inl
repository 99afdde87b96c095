// The CPU bodies of fusion and masks, and their places in the table; included by isa/, inside one instruction set's namespace.
#include "patch_mask_cpu.inl"
#include "masked_fusion_cpu.inl"
#include "masked_fusion_bwd_cpu.inl"
#include "concat_linear_cpu.inl"
#include "concat_linear_bwd_cpu.inl"

void fill_fusion(KernelTable& table) {
  table.patch_mask = patch_mask_cpu;
  table.masked_fusion_fwd = masked_fusion_fwd_cpu;
  table.masked_fusion_bwd = masked_fusion_bwd_cpu;
  table.concat_linear_fwd = concat_linear_fwd_cpu;
  table.concat_linear_bwd = concat_linear_bwd_cpu;
}
