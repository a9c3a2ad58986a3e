// What kernels need of CUDA beyond instructions: the language's own keywords and builtins
// (threadIdx, __syncthreads, __shfl_*_sync, atomicAdd, ...) and the block's shared memory.
// tests/simt/include/cuda/device.h is its twin for g++. Kernels include it as "cuda/device.h" and
// may use exactly what the twin declares; they carry no #ifdef.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "common/types.h"

namespace taut {

// The block's dynamic shared memory, the only shared memory kernels use: its size is a launch
// argument. Aligned to 1024 bytes, the period of the 128-byte swizzle.
__device__ __forceinline__ uint8_t* dynamic_shared() {
  extern __shared__ __align__(1024) uint8_t taut_dynamic_shared[];
  return taut_dynamic_shared;
}

}  // namespace taut
