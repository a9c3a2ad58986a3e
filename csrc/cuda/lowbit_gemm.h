// What runs the kernels of lowbit_gemm on CUDA: one translation unit per width of the weight.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/lowbit_gemm_params.h"

namespace taut {

template <int bits>
void run_lowbit_linear(const LowbitParams& p, int processors, cudaStream_t stream);

}  // namespace taut
