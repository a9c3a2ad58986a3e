// The kernels of varlen attention, forward, for f16.
#include "cuda/attention_run.cuh"

template void taut::run_attention<taut::f16>(const AttentionParams&, int32_t, cudaStream_t);
