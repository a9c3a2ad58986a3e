// Parameters and kernels of the quantize ops on the CPU.
#pragma once
#include <cstdint>

#include "common/quantize_grid.h"
#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

// Rows are contiguous; strides between rows in elements. A null pointer means "not given". q and
// scale are contiguous. `scratch` holds one fp32 row.
struct QuantizeParams {
  const void* x;
  const float* channel_scale;
  const float* channel_shift;
  int8_t* q;
  float* scale;  // groups per row
  int64_t x_stride;
  int64_t columns, group_size, groups, bits;
  float midrise_step;  // of a row whose rms is 1
  QuantizeGrid grid;
  bool hadamard;
};

using QuantizeRows = void(const QuantizeParams&, float* scratch, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(quantize_rows_f32, QuantizeRows)
TAUT_DECLARE_KERNEL(quantize_rows_bf16, QuantizeRows)
TAUT_DECLARE_KERNEL(quantize_rows_f16, QuantizeRows)

// The vectors share the dtype of x. What is quantized is shaped by quant_weight and quant_bias;
// without an affine map of its own they are those of out.
struct NormQuantizeParams {
  const void* x;
  const void* residual;
  const void* bias;
  const void* weight;
  const void* norm_bias;
  const void* quant_weight;
  const void* quant_bias;
  void* out;
  int8_t* q;
  float* scale;
  int64_t x_stride, residual_stride;
  int64_t columns, bits;
  float eps;
  bool own_affine;  // quantize by quant_weight and quant_bias instead of out's own
};

using NormQuantizeRows = void(const NormQuantizeParams&, float* scratch, int64_t begin,
                              int64_t end);
TAUT_DECLARE_KERNEL(norm_quantize_rows_f32, NormQuantizeRows)
TAUT_DECLARE_KERNEL(norm_quantize_rows_bf16, NormQuantizeRows)
TAUT_DECLARE_KERNEL(norm_quantize_rows_f16, NormQuantizeRows)

// A row of x is a matrix (a, b); left (a, a) and right (b, b) are contiguous. In scratch, matrices
// of b columns have rows of `stride` floats, whole vectors of any instruction set: right, two
// products, then left and the row.
struct KroneckerParams {
  const void* x;
  const void* left;
  const void* right;
  void* out;
  int64_t x_stride;
  int64_t a, b, stride;
};

using KroneckerRows = void(const KroneckerParams&, float* scratch, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(kronecker_rows_f32, KroneckerRows)
TAUT_DECLARE_KERNEL(kronecker_rows_bf16, KroneckerRows)
TAUT_DECLARE_KERNEL(kronecker_rows_f16, KroneckerRows)

}  // namespace taut
