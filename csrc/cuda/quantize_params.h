// Parameters of the quantize kernels on CUDA. Rows are contiguous; strides between rows in
// elements. A null pointer means "not given".
#pragma once
#include "common/quantize_grid.h"
#include "common/types.h"

namespace taut {

struct QuantizeParams {
  const void* x;
  const float* channel_scale;
  const float* channel_shift;
  int8_t* q;
  float* scale;  // (rows, groups)
  int64_t rows, x_stride, q_stride;
  int32_t columns, group_size, groups, bits;
  float midrise_step;
  QuantizeGrid grid;
  bool hadamard;
};

// The vectors and the residual share the dtype of out; x may be wider. What is quantized is shaped
// by quant_weight and quant_bias; without an affine map of its own it is what is rounded to out.
struct NormQuantizeParams {
  const void* x;
  const void* residual;
  const void* bias;
  const void* weight;
  const void* norm_bias;
  const void* quant_weight;
  const void* quant_bias;
  void* out;
  int8_t* q;  // null: not wanted
  float* scale;
  int64_t rows, x_stride, residual_stride;
  int32_t columns, bits;
  float eps;
  bool own_affine;
};

}  // namespace taut
