// A race on purpose: what must be reported before silence about kernels means anything.
//   planted sum     every task adds to one number
//   planted row     a task writes one element into the next one's row
//   planted none    each task writes its own row
#include <cstdio>
#include <cstring>

#include "pool.h"

using namespace avfast;
using namespace avfast::threads;

namespace {

constexpr int64_t rows = 41, width = 7;
float out[rows * width + 1];
double total = 0;

}  // namespace

int main(int count, char** words) {
  const char* plant = count > 1 ? words[1] : "";
  const bool sum = !std::strcmp(plant, "sum"), row = !std::strcmp(plant, "row");
  if (!sum && !row && std::strcmp(plant, "none")) {
    std::fprintf(stderr, "planted: expected sum, row or none, got '%s'\n", plant);
    return 2;
  }
  static Pool pool;
  const Parallel parallel{[](int64_t tasks, Parallel::Body body, void* context) { pool.run(Deal::cards, tasks, body, context); }};
  parallel(rows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < width + row; ++i) out[r * width + i] = float(r);
      if (sum) total += out[r * width];
    }
  });
  return 0;
}
