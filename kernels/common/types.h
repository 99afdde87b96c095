// Element types and the parallel loop, without torch: what every kernel of every backend may rely on.
#pragma once

#include <cstdint>
#include <type_traits>

namespace avfast {

enum class DType : int32_t { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// Storage only; arithmetic happens after conversion to float.
struct f16_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};

// A dense activation seen as N samples x C channels x S positions, in one of the two orders that need no copy.
struct Activation {
  enum Order : int32_t {
    rows = 0,   // [N, C, S]: the positions of one (sample, channel) are neighbours, as in NCHW
    lanes = 1,  // [N, S, C]: the channels of one position are neighbours, as in channels-last and in [N, C]
  };
  int64_t samples;    // N
  int64_t channels;   // C
  int64_t positions;  // S
  Order order;
  DType dtype;

  int64_t per_channel() const { return samples * positions; }
  int64_t numel() const { return samples * channels * positions; }
};

// The caller's thread pool. Kernels cut work by shape alone, never by thread count, so results do not depend on it.
struct Parallel {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  void (*loop)(int64_t tasks, Body body, void* context);

  template <typename F>
  void operator()(int64_t tasks, F&& body) const {
    using Fn = typename std::remove_reference<F>::type;
    if (tasks <= 1) {
      if (tasks == 1) body(int64_t{0}, int64_t{1});
      return;
    }
    loop(
        tasks,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<Fn*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

}  // namespace avfast
