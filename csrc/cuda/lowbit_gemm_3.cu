// The kernels of lowbit_gemm for weights of 3 bits.
#include "cuda/lowbit_gemm_run.cuh"

template const char* taut::run_lowbit_linear<3>(const LowbitParams&, ScalarType, LowbitDevice,
                                                cudaStream_t);
