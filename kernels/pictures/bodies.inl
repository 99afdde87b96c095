// The CPU bodies of pictures, and their places in the table; included by isa/, inside one instruction set's namespace.
#include "resize_axis.inl"
#include "yuv_to_rgb_cpu.inl"
#include "recolour_cpu.inl"

void fill_pictures(KernelTable& table) {
  table.yuv_to_rgb = yuv_to_rgb_cpu;
  table.recolour = recolour_cpu;
}
