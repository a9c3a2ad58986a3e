// The kernels of varlen attention, forward, for bf16.
#include "cuda/attention_run.cuh"

template const char* taut::run_attention<taut::bf16>(AttentionParams, int32_t, cudaStream_t);
