// Parameters and kernels of the activation ops on the CPU.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

// x is (rows, columns) with contiguous rows; bias is null or has `columns` elements. A gated unit
// has out (rows, columns / 2) = act(left half + bias) * (right half + bias).
struct ActivationParams {
  const void* x;
  const void* bias;
  void* out;
  int64_t x_stride;
  int64_t columns;
  Activation activation;
  bool gated;
};

using ActivationRows = void(const ActivationParams&, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(activation_rows_f32, ActivationRows)
TAUT_DECLARE_KERNEL(activation_rows_bf16, ActivationRows)
TAUT_DECLARE_KERNEL(activation_rows_f16, ActivationRows)

// A kernel call handles one block of kSumRows rows and writes their sum over dx to
// partials[block], `columns` floats; partials is null where no bias was given.
struct ActivationBackwardParams {
  const void* grad_out;
  const void* x;
  const void* bias;
  void* dx;
  float* partials;
  int64_t grad_out_stride, x_stride;
  int64_t rows, columns;
  Activation activation;
  bool gated;
};

using ActivationBackwardBlock = void(const ActivationBackwardParams&, int64_t block);
TAUT_DECLARE_KERNEL(activation_backward_block_f32, ActivationBackwardBlock)
TAUT_DECLARE_KERNEL(activation_backward_block_bf16, ActivationBackwardBlock)
TAUT_DECLARE_KERNEL(activation_backward_block_f16, ActivationBackwardBlock)

}  // namespace taut
