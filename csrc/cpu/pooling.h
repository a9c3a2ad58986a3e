// Parameters and kernels of the pooling ops on the CPU.
#pragma once
#include <cstdint>

#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

enum class PoolMode : int { cls, mean, max, last };

// Sequence s has the rows cu_seqlens[s] to cu_seqlens[s + 1] of x. `scratch` holds one fp32 row
// (two for the gradient). The gradient reads grad_out (batch rows) and writes dx, whose rows are
// contiguous, one after another.
struct PoolParams {
  const void* x;
  const void* grad_out;
  const int32_t* cu_seqlens;
  void* out;  // (batch, columns), or dx (total_tokens, columns)
  int64_t x_stride, grad_out_stride;
  int64_t columns;
  PoolMode mode;
  bool normalize;
};

using PoolSequence = void(const PoolParams&, float* scratch, int64_t sequence);
TAUT_DECLARE_KERNEL(pool_f32, PoolSequence)
TAUT_DECLARE_KERNEL(pool_bf16, PoolSequence)
TAUT_DECLARE_KERNEL(pool_f16, PoolSequence)
TAUT_DECLARE_KERNEL(pool_backward_f32, PoolSequence)
TAUT_DECLARE_KERNEL(pool_backward_bf16, PoolSequence)
TAUT_DECLARE_KERNEL(pool_backward_f16, PoolSequence)

}  // namespace taut
