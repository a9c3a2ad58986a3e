// The kernels of varlen attention, forward, for f16.
#include "cuda/attention_run.cuh"

template const char* taut::run_attention<taut::f16>(AttentionParams, int32_t, cudaStream_t);
