// For launchers: running a kernel over blocks of rows and adding up what they summed.
#pragma once
#include "cpu/column_sums.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {

inline int64_t sum_blocks(int64_t rows) { return (rows + kSumRows - 1) / kSumRows; }

// body(scratch of `floats` floats, block) for every block of kSumRows rows, in parallel.
template <class Body>
inline void for_sum_blocks(int64_t rows, int64_t columns, int64_t floats, const Body& body) {
  parallel_rows(sum_blocks(rows), columns * kSumRows, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(floats);
    for (int64_t block = begin; block < end; ++block) body(scratch, block);
  });
}

// (columns,) of type `dtype`: the sum of `blocks` rows of partials, `stride` floats apart.
Tensor add_column_sums(const float* partials, int64_t blocks, int64_t stride, int64_t columns,
                       ScalarType dtype);

}  // namespace taut
