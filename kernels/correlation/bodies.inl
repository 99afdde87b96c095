// The CPU bodies of correlation, exemplars and losses of maps, and their places in the table; included by isa/, inside one
// instruction set's namespace.
#include "correlate_tiles.inl"
#include "correlate_cpu.inl"
#include "correlate_bwd_cpu.inl"
#include "exemplar_crop_cpu.inl"
#include "map_axis.inl"
#include "map_walk.inl"
#include "binary_pixels.inl"
#include "map_loss_cpu.inl"
#include "upsample_ce_cpu.inl"

void fill_correlation(KernelTable& table) {
  table.correlate_fwd = correlate_fwd_cpu;
  table.correlate_bwd = correlate_bwd_cpu;
  table.exemplar_crop = exemplar_crop_cpu;
  table.box_bce = box_bce_cpu;
  table.upsample_ce = upsample_ce_cpu;
}
