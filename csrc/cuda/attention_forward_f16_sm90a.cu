// The Hopper kernels of varlen attention, forward, for f16.
#include "cuda/attention_hopper_run.cuh"

template bool taut::run_attention_hopper<taut::f16>(const AttentionParams&, int32_t, cudaStream_t);
