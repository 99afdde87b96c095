// Runs CUDA kernels on the host, one block after another: the compiler finds this file instead of the real header.
//
// Every thread of a block is a fiber. A fiber runs until a barrier or a shuffle; it goes on when all threads (barrier)
// or all lanes of its warp (shuffle) have arrived, and a launch in which that never happens fails. Threads run in
// ascending or descending order (emulator::descending): a missing barrier gives different answers in the two, or reads
// the 0xff bytes that shared memory is filled with before each block. It says nothing about speed.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static __attribute__((section("emulated_shared")))

struct uint4 { unsigned x, y, z, w; };
struct int2 { int x, y; };
struct double2 { double x, y; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" char __start_emulated_shared[], __stop_emulated_shared[];

namespace emulator {

enum class State { running, at_shuffle, at_barrier, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::done;
  uint64_t slot[2] = {};  // what it offered to its last two shuffles
  int shuffles = 0;
};

struct Machine {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  std::function<void()> body;
  unsigned current = 0;
  int64_t launches = 0, blocks = 0;
  bool descending = false;
  cudaError_t last = cudaSuccess;
};
inline Machine machine;

inline void wait(State state) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = state;
  swapcontext(&fiber.context, &machine.scheduler);
}

inline void entry() {
  machine.body();
  machine.fibers[machine.current].state = State::done;
}

inline void resume(unsigned t) {
  machine.current = t;
  threadIdx = dim3(t, 0, 0);
  machine.fibers[t].state = State::running;
  swapcontext(&machine.scheduler, &machine.fibers[t].context);
}

// One block; false when some threads wait for others that will never come.
inline bool run_block(unsigned threads) {
  constexpr size_t stack_bytes = 64 << 10;
  if (machine.fibers.size() < threads) machine.fibers.resize(threads);
  memset(__start_emulated_shared, 0xff, size_t(__stop_emulated_shared - __start_emulated_shared));
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = machine.fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, stack_bytes};
    fiber.context.uc_link = &machine.scheduler;
    makecontext(&fiber.context, entry, 0);
    fiber.state = State::running;
    fiber.shuffles = 0;
  }
  auto all = [&](unsigned begin, unsigned end, State state, bool or_done) {
    for (unsigned t = begin; t < end; ++t)
      if (machine.fibers[t].state != state && !(or_done && machine.fibers[t].state == State::done)) return false;
    return true;
  };
  auto run = [&](unsigned begin, unsigned end) {
    for (unsigned i = begin; i < end; ++i) {
      const unsigned t = machine.descending ? begin + end - 1 - i : i;
      if (machine.fibers[t].state != State::done) resume(t);
    }
  };
  run(0, threads);
  while (!all(0, threads, State::done, true)) {
    bool progress = false;
    for (unsigned begin = 0; begin < threads; begin += 32)
      if (all(begin, begin + 32, State::at_shuffle, false)) {
        run(begin, begin + 32);
        progress = true;
      }
    if (!progress) {
      if (!all(0, threads, State::at_barrier, true)) return false;
      run(0, threads);
    }
  }
  return true;
}

template <typename T>
inline T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) <= 8, "one register pair");
  Fiber& mine = machine.fibers[machine.current];
  const int turn = mine.shuffles++ % 2;
  memcpy(&mine.slot[turn], &value, sizeof value);
  const unsigned partner = machine.current ^ unsigned(mask);
  wait(State::at_shuffle);
  memcpy(&value, &machine.fibers[partner].slot[turn], sizeof value);
  return value;
}

}  // namespace emulator


inline void __syncthreads() { emulator::wait(emulator::State::at_barrier); }
template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) { return emulator::shuffle_xor(value, mask); }
template <typename T>
inline T atomicOr(T* p, T v) { const T old = *p; *p |= v; return old; }
template <typename T>
inline T atomicAdd(T* p, T v) { const T old = *p; *p += v; return old; }
template <typename T>
inline T __ldg(const T* p) { return *p; }
template <typename T>
inline void __stwb(T* p, T v) { *p = v; }

inline float __uint_as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline float __int_as_float(int32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline int32_t __float_as_int(float f) { int32_t bits; memcpy(&bits, &f, 4); return bits; }
inline float normcdff(float z) { return float(0.5 * erfc(-double(z) * 0.70710678118654752440)); }

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::machine.last, cudaSuccess); }

template <typename... Params, typename... Args>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const unsigned threads = config->blockDim.x;
  if (threads % 32 || threads > 1024 || config->gridDim.x == 0) return cudaErrorInvalidConfiguration;
  auto& machine = emulator::machine;
  machine.body = [&] { kernel(args...); };
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  ++machine.launches;
  for (unsigned b = 0; b < config->gridDim.x; ++b, ++machine.blocks) {
    blockIdx = dim3(b, 0, 0);
    if (!emulator::run_block(config->blockDim.x)) {
      fprintf(stderr, "cuda emulator: block %u waits for threads that never arrive\n", b);
      return machine.last = cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}
