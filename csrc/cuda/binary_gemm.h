// What runs the Hopper kernel of binary_gemm on CUDA.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/binary_gemm_params.h"

namespace taut {

void run_binary_wgmma(const BinaryLinearParams& p, cudaStream_t stream);

}  // namespace taut
