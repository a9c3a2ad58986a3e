// How the work of a matrix product is shared out. For launchers only.
#pragma once
#include <algorithm>
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

}  // namespace taut
