// Parameters and kernels of the norm ops on the CPU.
#pragma once
#include <cstdint>

#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

// Rows are contiguous; strides between rows in elements. A null pointer means "not given".
// bias, weight and norm_bias share the dtype of x. `scratch` holds one fp32 row.
struct NormParams {
  const void* x;
  const void* residual;
  const void* bias;
  const void* weight;
  const void* norm_bias;
  void* out;
  void* sum;    // x + bias + residual, or null
  float* mean;  // null for RMSNorm
  float* rstd;
  int64_t x_stride, residual_stride;
  int64_t columns;
  float eps;
  bool rms;
};

using NormRows = void(const NormParams&, float* scratch, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(norm_rows_f32, NormRows)
TAUT_DECLARE_KERNEL(norm_rows_bf16, NormRows)
TAUT_DECLARE_KERNEL(norm_rows_f16, NormRows)

// A kernel call handles one block of kSumRows rows and writes that block's column sums to
// partials[block] = [dbias | dweight | dnorm_bias], each `columns` floats.
struct NormBackwardParams {
  const void* grad_out;
  const void* grad_sum;
  const void* x;
  const void* residual;
  const void* bias;
  const void* weight;
  const float* mean;  // null for RMSNorm
  const float* rstd;
  void* dx;
  float* partials;
  int64_t grad_out_stride, grad_sum_stride, x_stride, residual_stride;
  int64_t rows, columns;
};

using NormBackwardBlock = void(const NormBackwardParams&, float* scratch, int64_t block);
TAUT_DECLARE_KERNEL(norm_backward_block_f32, NormBackwardBlock)
TAUT_DECLARE_KERNEL(norm_backward_block_bf16, NormBackwardBlock)
TAUT_DECLARE_KERNEL(norm_backward_block_f16, NormBackwardBlock)

}  // namespace taut
