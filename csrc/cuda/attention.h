// Between the launchers of varlen attention, compiled once, and its kernels, compiled per dtype.
#pragma once
#include <cuda_runtime_api.h>

#include "common/types.h"
#include "cuda/attention_params.h"

namespace taut {

// Launch on `device`, the current one.
template <class T>
void run_attention(const AttentionParams& p, int32_t device, cudaStream_t stream);
template <class T>
void run_attention_backward(const AttentionBackwardParams& b, int32_t device, cudaStream_t stream);

extern template void run_attention<bf16>(const AttentionParams&, int32_t, cudaStream_t);
extern template void run_attention<f16>(const AttentionParams&, int32_t, cudaStream_t);
extern template void run_attention_backward<bf16>(const AttentionBackwardParams&, int32_t,
                                                  cudaStream_t);
extern template void run_attention_backward<f16>(const AttentionBackwardParams&, int32_t,
                                                 cudaStream_t);

}  // namespace taut
