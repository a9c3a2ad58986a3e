// The kernels of varlen attention for f16.
#include "cuda/attention_run.cuh"

namespace taut {

template void run_attention<f16>(const AttentionParams&, int32_t, cudaStream_t);
template void run_attention_backward<f16>(const AttentionBackwardParams&, int32_t, cudaStream_t);

}  // namespace taut
