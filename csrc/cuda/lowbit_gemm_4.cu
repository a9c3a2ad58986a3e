// The kernels of lowbit_gemm for weights of 4 bits.
#include "cuda/lowbit_gemm_run.cuh"

template const char* taut::run_lowbit_linear<4>(const LowbitParams&, ScalarType, LowbitDevice,
                                                cudaStream_t);
