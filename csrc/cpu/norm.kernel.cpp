// bias + residual + LayerNorm or RMSNorm, one pass over each row, and its gradient.
//
// A row is summed into an fp32 scratch row (it stays in L1), normalised there and written once.
#include "cpu/norm.h"

#include "cpu/column_sums.h"
#include "cpu/norm_row.h"

namespace taut {
namespace TAUT_ISA {
namespace {

template <class T>
inline const T* row_of(const void* data, int64_t stride, int64_t row) {
  return data ? static_cast<const T*>(data) + row * stride : nullptr;
}

template <class T>
void norm_rows(const NormParams& p, float* row, int64_t begin, int64_t end) {
  const int64_t columns = p.columns;
  const T* bias = static_cast<const T*>(p.bias);
  const T* weight = static_cast<const T*>(p.weight);
  const T* norm_bias = static_cast<const T*>(p.norm_bias);

  for (int64_t r = begin; r < end; ++r) {
    const T* x = row_of<T>(p.x, p.x_stride, r);
    const T* residual = row_of<T>(p.residual, p.residual_stride, r);
    T* sum = p.sum ? static_cast<T*>(p.sum) + r * columns : nullptr;

    Vec total = Vec::zero();
    for_columns(columns, [&](int64_t c, int n) {
      Vec v = load(x + c, n);
      if (bias) v = v + load(bias + c, n);
      if (residual) v = v + load(residual + c, n);
      if (sum) store(v, sum + c, n);
      store(v, row + c, n);
      total = p.rms ? fma(v, v, total) : total + v;
    });
    const Moments moments = moments_of(row, columns, total, p.rms, p.eps);
    if (p.mean) p.mean[r] = moments.mean;
    p.rstd[r] = moments.rstd;
    write_normalized(row, columns, moments, weight, norm_bias,
                     static_cast<T*>(p.out) + r * columns);
  }
}

template <class T>
void norm_backward_block(const NormBackwardParams& p, float* row, int64_t block) {
  const int64_t columns = p.columns;
  const bool rms = p.mean == nullptr;
  const T* bias = static_cast<const T*>(p.bias);
  const T* weight = static_cast<const T*>(p.weight);
  float* dbias = p.partials + block * 3 * columns;
  float* dweight = dbias + columns;
  float* dnorm_bias = dweight + columns;
  std::memset(dbias, 0, static_cast<size_t>(3 * columns) * sizeof(float));

  const int64_t end = (block + 1) * kSumRows < p.rows ? (block + 1) * kSumRows : p.rows;
  for (int64_t r = block * kSumRows; r < end; ++r) {
    const T* x = row_of<T>(p.x, p.x_stride, r);
    const T* residual = row_of<T>(p.residual, p.residual_stride, r);
    const T* grad_sum = row_of<T>(p.grad_sum, p.grad_sum_stride, r);
    T* dx = static_cast<T*>(p.dx) + r * columns;
    for_columns(columns, [&](int64_t c, int n) {
      Vec v = load(x + c, n);
      if (bias) v = v + load(bias + c, n);
      if (residual) v = v + load(residual + c, n);
      store(v, row + c, n);
    });
    const Moments moments{rms ? 0.0f : p.mean[r], p.rstd[r]};
    norm_gradient(row, columns, moments, rms, row_of<T>(p.grad_out, p.grad_out_stride, r), weight,
                  weight ? dweight : nullptr, rms ? nullptr : dnorm_bias,
                  [&](int64_t c, int n, Vec v) {
                    if (grad_sum) v = v + load(grad_sum + c, n);
                    if (bias) store(load(dbias + c, n) + v, dbias + c, n);
                    store(v, dx + c, n);
                  });
  }
}

}  // namespace

void norm_rows_f32(const NormParams& p, float* scratch, int64_t begin, int64_t end) {
  norm_rows<float>(p, scratch, begin, end);
}
void norm_rows_bf16(const NormParams& p, float* scratch, int64_t begin, int64_t end) {
  norm_rows<bf16>(p, scratch, begin, end);
}
void norm_rows_f16(const NormParams& p, float* scratch, int64_t begin, int64_t end) {
  norm_rows<f16>(p, scratch, begin, end);
}

void norm_backward_block_f32(const NormBackwardParams& p, float* scratch, int64_t block) {
  norm_backward_block<float>(p, scratch, block);
}
void norm_backward_block_bf16(const NormBackwardParams& p, float* scratch, int64_t block) {
  norm_backward_block<bf16>(p, scratch, block);
}
void norm_backward_block_f16(const NormBackwardParams& p, float* scratch, int64_t block) {
  norm_backward_block<f16>(p, scratch, block);
}

}  // namespace TAUT_ISA
}  // namespace taut
