// The kernels of varlen attention, backward, for bf16.
#include "cuda/attention_run.cuh"

template void taut::run_attention_backward<taut::bf16>(const AttentionBackwardParams&, int32_t,
                                                       cudaStream_t);
