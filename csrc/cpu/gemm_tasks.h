// How the work of a matrix product is shared out. For launchers only.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/tensor.h"

namespace taut {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the rows of x are cut: into blocks of whole units, as equal as they come. A unit is the rows
// of a tile, so that only the last one is narrower. Nothing of this touches a result.
struct RowSplit {
  int64_t rows, unit, blocks;
  int64_t begin(int64_t block) const {
    return std::min(rows, divide_up(rows, unit) * block / blocks * unit);
  }
};

// Blocks of at most `most_rows`, as many as a multiple of `multiple` where there are units enough.
inline RowSplit split_rows(int64_t rows, int64_t unit, int64_t most_rows, int64_t multiple) {
  const int64_t units = divide_up(rows, unit);
  const int64_t blocks = divide_up(units, std::max<int64_t>(1, most_rows / unit));
  return {rows, unit, std::min(units, divide_up(blocks, multiple) * multiple)};
}

// Runs body(task, worker) for every task, the next free worker taking the next; worker < threads.
template <class Body>
inline void run_tasks(int64_t tasks, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      body(task, worker);
  };
  const int64_t workers = std::min(threads, tasks);
  if (workers <= 1) return work(0);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) { work(worker); });
}

}  // namespace taut
