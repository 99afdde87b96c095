// What the cases of all families share: memory, numbers, and a call that is made alone and on four threads.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../kernels/isa/table.h"
#include "pool.h"

namespace avfast::threads {

constexpr DType all_types[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
constexpr DType wide_type(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// What was done with one kernel.
struct Tally {
  int64_t calls = 0, loops = 0, tasks = 0;
  int64_t idle = 0;       // calls without a loop that has work for every thread
  int64_t differing = 0;  // calls that wrote other bytes than alone
};

class Cases {
 public:
  // With `shared` every call is made alone, in ranges and as cards, and must give the same bytes; else alone only.
  Cases(const KernelTable& table, uint64_t seed, bool shared) : table_(table), state_(seed), shared_(shared) {}

  const char* isa() const { return table_.isa; }

  // Forgets the memory of the case before.
  void next() { memory_.clear(), outputs_.clear(); }

  int64_t between(int64_t low, int64_t high) { return low + int64_t(draw() % uint64_t(high - low + 1)); }
  bool maybe() { return draw() >> 63; }

  // n numbers of magnitude 2^-5 to 2, of the type.
  void* numbers(DType dtype, int64_t n);
  // n numbers between 0 and 1 of the wide type.
  void* fractions(DType dtype, int64_t n);
  // n whole numbers of low to high.
  template <typename I>
  I* integers(int64_t n, int64_t low, int64_t high) {
    I* to = static_cast<I*>(room(n * int64_t(sizeof(I))));
    for (int64_t i = 0; i < n; ++i) to[i] = I(between(low, high));
    return to;
  }
  // What the next call writes.
  void* output(int64_t bytes) { return changed(room(bytes), bytes); }
  void* output(DType dtype, int64_t n) { return output(n * size_of(dtype)); }
  // Memory of a case that the next call changes.
  void* changed(void* data, int64_t bytes) {
    outputs_.push_back({static_cast<char*>(data), std::string(static_cast<char*>(data), size_t(bytes))});
    return data;
  }

  template <typename Args>
  void call(const char* name, void (*KernelTable::*kernel)(const Args&, const Parallel&), const Args& args) {
    begin(name, Deal::alone);
    (table_.*kernel)(args, parallel());
    const std::vector<std::string> expected = written();
    for (Deal deal : {Deal::ranges, Deal::cards}) {
      if (!shared_) break;
      begin(name, deal);
      (table_.*kernel)(args, parallel());
      end(expected);
    }
    outputs_.clear();
  }

  const std::map<std::string, Tally>& tallies() const { return tallies_; }

 private:
  struct Output {
    char* data;
    std::string before;
  };

  uint64_t draw();
  void* room(int64_t bytes);
  Parallel parallel() const;
  void begin(const char* name, Deal deal);
  std::vector<std::string> written() const;
  void end(const std::vector<std::string>& expected);

  const KernelTable& table_;
  uint64_t state_;
  bool shared_;
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<Output> outputs_;
  std::map<std::string, Tally> tallies_;
};

// Of one family each, in a file of its own.
void batch_norm(Cases& cases);
void in_batch(Cases& cases);
void queue(Cases& cases);
void correlation(Cases& cases);
void maps(Cases& cases);
void fusion(Cases& cases);
void pictures(Cases& cases);

}  // namespace avfast::threads

// A kernel by the name it has in KernelTable.
#define AVFAST_CALL(cases, kernel, ...) (cases).call(#kernel, &KernelTable::kernel, __VA_ARGS__)
