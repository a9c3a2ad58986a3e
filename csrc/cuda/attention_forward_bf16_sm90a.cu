// The Hopper kernels of varlen attention, forward, for bf16.
#include "cuda/attention_hopper_run.cuh"

template bool taut::run_attention_hopper<taut::bf16>(const AttentionParams&, int32_t, cudaStream_t);
