// What runs the quantize kernels on CUDA, for the launchers of all ops that quantize.
#pragma once
#include <cuda_runtime_api.h>

#include "common/check.h"
#include "cuda/quantize_params.h"

namespace taut {

// Columns of the longest row that fits a block's shared memory.
int64_t most_quantize_columns(int32_t device);

// Rows of `dtype` to int8.
void run_quantize(const QuantizeParams& p, ScalarType dtype, int32_t device, cudaStream_t stream);
// Rows of `dtype`, or of fp32 with everything else of `dtype`.
void run_norm_quantize(const NormQuantizeParams& p, ScalarType x_dtype, ScalarType dtype,
                       int32_t device, cudaStream_t stream);

}  // namespace taut
