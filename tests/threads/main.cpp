// Every CPU kernel on four threads, for ThreadSanitizer: see README.md of this folder.
//   threads [--rounds N] [--seed S]
// Each round draws other shapes and numbers. Fails if a kernel of the table is not called, gives its threads no work, or
// gives other bytes on four threads than on one; a race is reported by the sanitizer, which makes the exit status 66.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "cases.h"

using namespace avfast;
using namespace avfast::threads;

namespace {

struct Family {
  const char* name;
  void (*calls)(Cases&);
};
constexpr Family families[] = {
    {"batch_norm", batch_norm},
    {"in_batch", in_batch},
    {"queue", queue},
    {"correlation", correlation},
    {"maps", maps},
    {"fusion", fusion},
    {"pictures", pictures},
};
// Every pointer but `multiply_add`, which is of no op.
constexpr size_t kernels_of_table = (sizeof(KernelTable) - sizeof(KernelTable::isa)) / sizeof(void (*)()) - 1;

void all(Cases& cases, bool aloud) {
  for (const Family& family : families) {
    const auto begun = std::chrono::steady_clock::now();
    family.calls(cases);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    if (aloud) std::printf("threads: %s: %s: %.1f s\n", cases.isa(), family.name, took.count()), std::fflush(stdout);
  }
}

// Two threads that call kernels at the same time: what calls share must be theirs alone.
void side_by_side(const KernelTable& table, uint64_t seed) {
  Cases here(table, seed, false), there(table, seed + 1, false);
  std::thread other([&] { all(there, false); });
  all(here, false);
  other.join();
}

int complaints(const KernelTable& table, const std::map<std::string, Tally>& tallies) {
  int found = 0;
  const auto complain = [&](const std::string& name, const char* text, int64_t times) {
    std::printf("threads: %s: %s: failed %lld times: %s\n", table.isa, name.c_str(), static_cast<long long>(times), text);
    ++found;
  };
  for (const auto& [name, tally] : tallies) {
    // A few long channels, for instance, are fewer tasks than threads.
    if (2 * tally.idle > tally.calls) complain(name, "no loop has work for every thread", tally.idle);
    if (tally.differing) complain(name, "other bytes on four threads than on one", tally.differing);
  }
  if (tallies.size() != kernels_of_table) {
    complain("all", "KernelTable has kernels that no case calls", int64_t(kernels_of_table) - int64_t(tallies.size()));
  }
  return found;
}

int run(const KernelTable& table, int64_t rounds, uint64_t seed) {
  Cases cases(table, seed, true);
  side_by_side(table, seed + 1);
  for (int64_t round = 0; round < rounds; ++round) all(cases, true);
  int64_t calls = 0, loops = 0, tasks = 0;
  for (const auto& [name, tally] : cases.tallies()) calls += tally.calls, loops += tally.loops, tasks += tally.tasks;
  const int found = complaints(table, cases.tallies());
  std::printf(
      "threads: %s: %zu kernels, %lld calls, %lld loops, %lld tasks on %lld threads\n", table.isa, cases.tallies().size(),
      static_cast<long long>(calls), static_cast<long long>(loops), static_cast<long long>(tasks),
      static_cast<long long>(Pool::threads));
  std::fflush(stdout);
  return found;
}

}  // namespace

int main(int count, char** words) {
  int64_t rounds = 1, seed = 0;
  for (int i = 1; i < count; i += 2) {
    const std::string word = words[i];
    if (i + 1 == count || (word != "--rounds" && word != "--seed")) {
      std::fprintf(stderr, "threads: expected --rounds N or --seed S, got '%s'\n", words[i]);
      return 2;
    }
    (word == "--seed" ? seed : rounds) = std::atoll(words[i + 1]);
  }
  int found = 0;
  for (const char* isa : {"base", "avx2", "avx512", "avx512_bf16"})
    if (force_isa(isa)) found += run(kernels(), rounds, uint64_t(seed));
  return found ? 1 : 0;
}
