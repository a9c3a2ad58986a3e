// Sums over the rows of a matrix (gradients of vectors) that do not depend on the thread count:
// every block of kSumRows rows is summed on its own, then runs of kSumRows blocks, then the runs in
// order. Long sums would lose to torch's, which add by halves.
#pragma once
#include <cstdint>

#include "cpu/dispatch.h"

namespace taut {

constexpr int64_t kSumRows = 32;

// out[c] = sum over rows of x[row * stride + c] for begin <= c < end, in fp32; 0 without rows.
struct ColumnSumParams {
  const void* x;
  int64_t rows, stride;
  void* out;
};

using ColumnSum = void(const ColumnSumParams&, int64_t begin, int64_t end);
// From fp32 to the named type.
TAUT_DECLARE_KERNEL(column_sum_f32, ColumnSum)
TAUT_DECLARE_KERNEL(column_sum_bf16, ColumnSum)
TAUT_DECLARE_KERNEL(column_sum_f16, ColumnSum)
// From the named type to the same.
TAUT_DECLARE_KERNEL(column_sum_of_bf16, ColumnSum)
TAUT_DECLARE_KERNEL(column_sum_of_f16, ColumnSum)

}  // namespace taut
