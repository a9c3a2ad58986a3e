// Sums over rows, one thread per run of columns.
#include "cpu/column_sums.h"

#include "cpu/isa/columns.h"

namespace taut {
namespace TAUT_ISA {
namespace {

template <class In, class Out>
void column_sum(const ColumnSumParams& p, int64_t begin, int64_t end) {
  Out* out = static_cast<Out*>(p.out) + begin;
  for_columns(end - begin, [&](int64_t c, int n) {
    Vec sum = Vec::zero();
    const In* x = static_cast<const In*>(p.x) + begin + c;
    for (int64_t row = 0; row < p.rows;) {
      Vec run = Vec::zero();
      const int64_t last = p.rows - row < kSumRows ? p.rows : row + kSumRows;
      for (; row < last; ++row, x += p.stride) run = run + load(x, n);
      sum = sum + run;
    }
    store(sum, out + c, n);
  });
}

}  // namespace

void column_sum_f32(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<float, float>(p, begin, end);
}
void column_sum_bf16(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<float, bf16>(p, begin, end);
}
void column_sum_f16(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<float, f16>(p, begin, end);
}
void column_sum_of_bf16(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<bf16, bf16>(p, begin, end);
}
void column_sum_of_f16(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<f16, f16>(p, begin, end);
}

}  // namespace TAUT_ISA
}  // namespace taut
