// The second step of sums over rows: adding up the blocks.
#include "cpu/column_sums.h"

#include "cpu/isa/columns.h"

namespace taut {
namespace TAUT_ISA {
namespace {

template <class T>
void column_sum(const ColumnSumParams& p, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(p.out) + begin;
  for_columns(end - begin, [&](int64_t c, int n) {
    Vec sum = Vec::zero();
    const float* partial = p.partials + begin + c;
    for (int64_t b = 0; b < p.blocks; ++b, partial += p.stride) sum = sum + load(partial, n);
    store(sum, out + c, n);
  });
}

}  // namespace

void column_sum_f32(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<float>(p, begin, end);
}
void column_sum_bf16(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<bf16>(p, begin, end);
}
void column_sum_f16(const ColumnSumParams& p, int64_t begin, int64_t end) {
  column_sum<f16>(p, begin, end);
}

}  // namespace TAUT_ISA
}  // namespace taut
