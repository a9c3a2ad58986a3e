// The Hopper kernels of lowbit_gemm.
#include "cuda/launch.cuh"
#include "cuda/lowbit_gemm.h"
#include "cuda/lowbit_wgmma_launch.cuh"

namespace taut {

template <int bits>
void run_lowbit_wgmma(const LowbitParams& p, cudaStream_t stream) {
  launch_lowbit_wgmma<bits>(p, GridLaunch{stream});
}
template void run_lowbit_wgmma<2>(const LowbitParams&, cudaStream_t);
template void run_lowbit_wgmma<3>(const LowbitParams&, cudaStream_t);
template void run_lowbit_wgmma<4>(const LowbitParams&, cudaStream_t);
template void run_lowbit_wgmma<8>(const LowbitParams&, cudaStream_t);

}  // namespace taut
