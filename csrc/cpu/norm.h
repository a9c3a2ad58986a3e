// Parameters and kernels of the norm ops on the CPU.
#pragma once
#include <cstdint>

#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

// Rows are contiguous; strides between rows in elements. A null pointer means "not given".
// `wide` tensors (bias, weight, norm_bias and their gradients) share the dtype of x.
struct NormParams {
  const void* x;
  const void* residual;
  const void* bias;
  const void* weight;
  const void* norm_bias;
  void* out;
  void* sum;     // x + bias + residual, or null
  float* mean;   // null for RMSNorm
  float* rstd;
  int64_t x_stride, residual_stride;
  int64_t columns;
  float eps;
  bool rms;
};

using NormRows = void(const NormParams&, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(norm_rows_f32, NormRows)
TAUT_DECLARE_KERNEL(norm_rows_bf16, NormRows)
TAUT_DECLARE_KERNEL(norm_rows_f16, NormRows)

}  // namespace taut
