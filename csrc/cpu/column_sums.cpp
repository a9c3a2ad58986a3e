#include "cpu/column_sums_launcher.h"

namespace taut {

Tensor add_column_sums(const float* partials, int64_t blocks, int64_t stride, int64_t columns,
                       ScalarType dtype) {
  Tensor out = empty_cpu({columns}, dtype);
  ColumnSum* kernel = float_kernel(dtype, "column_sum", "x", TAUT_KERNEL(column_sum_f32),
                                   TAUT_KERNEL(column_sum_bf16), TAUT_KERNEL(column_sum_f16));
  const ColumnSumParams p{partials, blocks, stride, out.mutable_data_ptr()};
  parallel_rows(columns, blocks, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return out;
}

}  // namespace taut
