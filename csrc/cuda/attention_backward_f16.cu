// The kernels of varlen attention, backward, for f16.
#include "cuda/attention_run.cuh"

template void taut::run_attention_backward<taut::f16>(const AttentionBackwardParams&, int32_t,
                                                      cudaStream_t);
