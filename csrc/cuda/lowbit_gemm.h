// What runs the kernels of lowbit_gemm on CUDA: one translation unit per width of the weight.
#pragma once
#include <cuda_runtime_api.h>

#include "common/check.h"
#include "cuda/build.h"
#include "cuda/lowbit_gemm_params.h"

namespace taut {

struct LowbitDevice {
  int processors;
  bool is_hopper;
};

// x is of int8, bf16 or fp16. Returns which kernels ran, for record_variant.
template <int bits>
const char* run_lowbit_linear(const LowbitParams& p, ScalarType x_dtype, LowbitDevice device,
                              cudaStream_t stream);
// Integer products of many rows.
template <int bits>
void run_lowbit_wgmma(const LowbitParams& p, cudaStream_t stream);

}  // namespace taut
