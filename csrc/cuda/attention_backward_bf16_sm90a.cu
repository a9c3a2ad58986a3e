// The Hopper kernels of varlen attention, backward, for bf16.
#include "cuda/attention_hopper_run.cuh"

template bool taut::run_attention_hopper_backward<taut::bf16>(const AttentionBackwardParams&,
                                                              int32_t, cudaStream_t);
