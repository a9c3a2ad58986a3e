// The kernels of lowbit_gemm for weights of 4 bits.
#include "cuda/lowbit_gemm_run.cuh"

template void taut::run_lowbit_linear<4>(const LowbitParams&, ScalarType, int, cudaStream_t);
