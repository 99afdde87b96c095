// What every family builds on; included inside one instruction set's namespace, before its bodies.
#include "../common/simd.inl"
#include "../common/vector_math.inl"
#include "../common/gemm_tile.inl"
#include "../common/multiply.inl"
#include "../common/scratch.inl"
#include "../common/pack.inl"
