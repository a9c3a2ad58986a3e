// The kernels of varlen attention, backward, for bf16.
#include "cuda/attention_run.cuh"

template const char* taut::run_attention_backward<taut::bf16>(AttentionBackwardParams, int32_t,
                                                              cudaStream_t);
