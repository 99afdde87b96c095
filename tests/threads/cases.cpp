#include "cases.h"

#include <algorithm>

namespace avfast::threads {
namespace {

Pool& pool() {
  static Pool made;
  return made;
}

// What a loop does with its tasks; only the main thread deals.
thread_local Deal dealing = Deal::alone;
thread_local Tally* counted = nullptr;
thread_local int64_t longest = 0;  // tasks of a loop of this call

void loop(int64_t tasks, Parallel::Body body, void* context) {
  if (dealing == Deal::alone) return body(context, 0, tasks);
  ++counted->loops;
  counted->tasks += tasks;
  longest = std::max(longest, tasks);
  pool().run(dealing, tasks, body, context);
}

}  // namespace

uint64_t Cases::draw() {  // splitmix64
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void* Cases::room(int64_t bytes) {
  memory_.push_back(std::make_unique<char[]>(size_t(bytes)));
  return memory_.back().get();
}

void* Cases::numbers(DType dtype, int64_t n) {
  void* to = room(n * size_of(dtype));
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t random = draw();
    const uint64_t sign = random >> 63, power = random % 6, digits = random >> 8;  // 2^(power - 5)
    switch (dtype) {
      case DType::f64:
        static_cast<uint64_t*>(to)[i] = sign << 63 | (1018 + power) << 52 | (digits & 0xfffffffffffff);
        break;
      case DType::f32: static_cast<uint32_t*>(to)[i] = uint32_t(sign << 31 | (122 + power) << 23 | (digits & 0x7fffff)); break;
      case DType::f16: static_cast<uint16_t*>(to)[i] = uint16_t(sign << 15 | (10 + power) << 10 | (digits & 0x3ff)); break;
      case DType::bf16: static_cast<uint16_t*>(to)[i] = uint16_t(sign << 15 | (122 + power) << 7 | (digits & 0x7f)); break;
    }
  }
  return to;
}

void* Cases::fractions(DType dtype, int64_t n) {
  void* to = room(n * size_of(wide_type(dtype)));
  for (int64_t i = 0; i < n; ++i) {
    const double value = double(draw() >> 11) * 0x1p-53;
    if (dtype == DType::f64) static_cast<double*>(to)[i] = value;
    else static_cast<float*>(to)[i] = float(value);
  }
  return to;
}

Parallel Cases::parallel() const { return {loop}; }

void Cases::begin(const char* name, Deal deal) {
  for (Output& output : outputs_) std::memcpy(output.data, output.before.data(), output.before.size());
  counted = &tallies_[name];
  dealing = deal;
  longest = 0;
  if (deal == Deal::alone) ++counted->calls;
}

std::vector<std::string> Cases::written() const {
  std::vector<std::string> found;
  for (const Output& output : outputs_) found.emplace_back(output.data, output.before.size());
  return found;
}

void Cases::end(const std::vector<std::string>& expected) {
  if (written() != expected) ++counted->differing;
  if (longest < Pool::threads && dealing == Deal::cards) ++counted->idle;
}

}  // namespace avfast::threads
