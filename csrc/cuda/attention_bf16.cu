// The kernels of varlen attention for bf16.
#include "cuda/attention_run.cuh"

namespace taut {

template void run_attention<bf16>(const AttentionParams&, int32_t, cudaStream_t);
template void run_attention_backward<bf16>(const AttentionBackwardParams&, int32_t, cudaStream_t);

}  // namespace taut
