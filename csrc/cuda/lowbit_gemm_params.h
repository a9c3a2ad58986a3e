// Parameters of the linear layers over low-bit weights on CUDA.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/types.h"

namespace taut {

constexpr int kLowbitPanel = 64;  // output channels of a panel of the packed weight
constexpr int kLowbitBlock = 64;  // input features of a block of a panel
constexpr int kMostTileColumns = 128;
constexpr int kMostSharedBytes = 99 << 10;  // that a block may have on every sm_8x

// Rows are contiguous; strides between rows in elements. A null pointer means "not given". Rows of
// x are aligned to 16 bytes.
struct LowbitParams {
  const void* x;         // int8, or fp16 or bf16
  const float* x_scale;  // (rows, x_groups), with x of int8
  const uint8_t* packed;
  const float* scale;       // (out_features, groups)
  const float* zero_point;  // the same shape
  const float* codebook;    // one table, or one per channel; not with x of int8
  const void* bias;
  const void* residual;
  void* out;       // (rows, out_features), contiguous
  int8_t* q;       // in place of out: quantized in groups of q_group_size columns
  float* q_scale;  // (rows, groups of q)
  int64_t rows, x_stride, x_scale_stride, residual_stride;
  int32_t in_features, out_features;
  int32_t group_size, groups, x_groups;  // of the weight: a multiple of 32, or one group
  int32_t q_group_size, q_bits;
  int32_t codebook_stride;
  float x_zero_point;
  FloatType bias_type, residual_type, out_type;
  Activation activation;

  // Sums of codes and activations are needed, or a scale per group.
  bool general() const { return groups > 1 || zero_point != nullptr || x_zero_point != 0.0f; }
};

}  // namespace taut
