// Parameters and kernels of the packed linear layers on the CPU.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

// A packed weight is panels of kPanel output channels: fp32 and fp16 (panel, k, channel), bf16
// (panel, k-pair, channel, member of the pair); missing channels and the missing member are zero.
constexpr int64_t kPanel = 64;
// Most rows of x that one kernel call may be given.
constexpr int64_t kMaxGemmRows = 256;

// Rows are contiguous; strides between rows in elements. A null pointer means "not given".
struct GemmParams {
  const void* x;
  const void* packed;
  const void* bias;
  bool bias_is_f32;  // else the dtype of x
  Activation activation;
  void* out;  // (rows of x, out_features), contiguous
  const void* residual;
  const void* weight;
  const void* norm_bias;
  float eps;
  int64_t x_stride, residual_stride;
  int64_t in_features, out_features;

  int64_t panels() const { return (out_features + kPanel - 1) / kPanel; }
  // Elements from one row of fp32 sums to the next: whole panels, and one cache line more so that
  // the rows of a tile do not compete for the same cache sets.
  int64_t sums_stride() const { return panels() * kPanel + 16; }
};

// Rows [row_begin, row_end) of x times panels [panel_begin, panel_end).
struct GemmBlock {
  int64_t row_begin, row_end;
  int64_t panel_begin, panel_end;
};

// out = activation(x W^T + bias) within the block.
using GemmLinear = void(const GemmParams&, const GemmBlock&);
TAUT_DECLARE_KERNEL(gemm_linear_f32, GemmLinear)
TAUT_DECLARE_KERNEL(gemm_linear_bf16, GemmLinear)
TAUT_DECLARE_KERNEL(gemm_linear_f16, GemmLinear)

// sums = x W^T + bias + residual within the block; `sums` belongs to row_begin and channel 0.
using GemmSums = void(const GemmParams&, const GemmBlock&, float* sums);
TAUT_DECLARE_KERNEL(gemm_sums_f32, GemmSums)
TAUT_DECLARE_KERNEL(gemm_sums_bf16, GemmSums)
TAUT_DECLARE_KERNEL(gemm_sums_f16, GemmSums)

// out = LayerNorm(sums) for rows [begin, end); `sums` belongs to row `begin`.
using GemmNorm = void(const GemmParams&, int64_t begin, int64_t end, const float* sums);
TAUT_DECLARE_KERNEL(gemm_norm_f32, GemmNorm)
TAUT_DECLARE_KERNEL(gemm_norm_bf16, GemmNorm)
TAUT_DECLARE_KERNEL(gemm_norm_f16, GemmNorm)

}  // namespace taut
