// Between the launchers of varlen attention, compiled once, and its kernels, compiled per dtype.
#pragma once
#include <cuda_runtime_api.h>

#include "common/types.h"
#include "cuda/attention_params.h"
#include "cuda/build.h"

namespace taut {

// Launch on `device`, the current one. Returns which kernels ran, for record_variant.
template <class T>
const char* run_attention(AttentionParams p, int32_t device, cudaStream_t stream);
// What the Hopper kernels do of a call; false if they do not serve it.
template <class T>
bool run_attention_hopper(const AttentionParams& p, int32_t device, cudaStream_t stream);
template <class T>
const char* run_attention_backward(AttentionBackwardParams b, int32_t device, cudaStream_t stream);
template <class T>
bool run_attention_hopper_backward(const AttentionBackwardParams& b, int32_t device,
                                   cudaStream_t stream);

extern template const char* run_attention<bf16>(AttentionParams, int32_t, cudaStream_t);
extern template const char* run_attention<f16>(AttentionParams, int32_t, cudaStream_t);
extern template bool run_attention_hopper<bf16>(const AttentionParams&, int32_t, cudaStream_t);
extern template bool run_attention_hopper<f16>(const AttentionParams&, int32_t, cudaStream_t);
extern template const char* run_attention_backward<bf16>(AttentionBackwardParams, int32_t,
                                                         cudaStream_t);
extern template const char* run_attention_backward<f16>(AttentionBackwardParams, int32_t,
                                                        cudaStream_t);
extern template bool run_attention_hopper_backward<bf16>(const AttentionBackwardParams&, int32_t,
                                                         cudaStream_t);
extern template bool run_attention_hopper_backward<f16>(const AttentionBackwardParams&, int32_t,
                                                        cudaStream_t);

}  // namespace taut
