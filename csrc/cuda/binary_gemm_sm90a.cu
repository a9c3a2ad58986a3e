// The Hopper kernel of binary_gemm.
#include "cuda/binary_gemm.h"
#include "cuda/binary_wgmma_launch.cuh"
#include "cuda/launch.cuh"

namespace taut {

void run_binary_wgmma(const BinaryLinearParams& p, cudaStream_t stream) {
  launch_binary_wgmma(p, GridLaunch{stream});
}

}  // namespace taut
