"""What the op families share: SIMD and CUDA helpers, argument types, Triton arithmetic."""
