// Four threads that share the tasks of a kernel, so that ThreadSanitizer sees every pair of tasks as it would see them on
// threads that never met: nothing but the beginning and the end of a loop orders one task before another.
#pragma once

#include <memory>
#include <semaphore>
#include <thread>
#include <vector>

#include "../../kernels/common/types.h"

namespace avfast::threads {

// How a loop's tasks come to threads.
enum class Deal {
  alone,   // all on the thread that calls
  ranges,  // one range of neighbours to each, as torch does
  cards,   // one after another to each in turn: every task has neighbours on other threads
};

class Pool {
 public:
  static constexpr int64_t threads = 4;  // with the one that calls

  explicit Pool() : workers_(threads - 1) {
    for (size_t k = 0; k < workers_.size(); ++k) {
      workers_[k] = std::make_unique<Worker>();
      workers_[k]->thread = std::thread([this, k] { serve(*workers_[k], int64_t(k) + 1); });
    }
  }
  ~Pool() {
    body_ = nullptr;
    for (auto& worker : workers_) worker->go.release();
    for (auto& worker : workers_) worker->thread.join();
  }

  void run(Deal deal, int64_t tasks, Parallel::Body body, void* context) {
    deal_ = deal, tasks_ = tasks, body_ = body, context_ = context;
    for (auto& worker : workers_) worker->go.release();
    share(0);
    for (auto& worker : workers_) worker->done.acquire();
  }

 private:
  // One pair of signals for each thread. A lock that they shared would order the tasks of one that is done before those of
  // one that is late, and hide races between them.
  struct Worker {
    std::binary_semaphore go{0}, done{0};
    std::thread thread;
  };

  void serve(Worker& worker, int64_t k) {
    for (;;) {
      worker.go.acquire();
      if (!body_) return;
      share(k);
      worker.done.release();
    }
  }
  void share(int64_t k) const {
    if (deal_ == Deal::ranges) {
      const int64_t begin = tasks_ * k / threads, end = tasks_ * (k + 1) / threads;
      if (begin < end) body_(context_, begin, end);
    } else {
      for (int64_t task = k; task < tasks_; task += threads) body_(context_, task, task + 1);
    }
  }

  std::vector<std::unique_ptr<Worker>> workers_;
  Deal deal_{};
  int64_t tasks_ = 0;
  Parallel::Body body_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace avfast::threads
