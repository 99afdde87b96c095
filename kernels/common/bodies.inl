// The CPU body that belongs to no op, and its place in the table; included by isa/, inside one instruction set's namespace.
#include "peak.inl"

void fill_common(KernelTable& table) {
  table.multiply_add = multiply_add_cpu;
}
