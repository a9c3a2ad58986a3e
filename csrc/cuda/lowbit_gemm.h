// What runs the kernels of lowbit_gemm on CUDA: one translation unit per width of the weight.
#pragma once
#include <cuda_runtime_api.h>

#include "common/check.h"
#include "cuda/lowbit_gemm_params.h"

namespace taut {

// x is of int8, bf16 or fp16.
template <int bits>
void run_lowbit_linear(const LowbitParams& p, ScalarType x_dtype, int processors,
                       cudaStream_t stream);

}  // namespace taut
