// Launches of kernels over a grid, for the launchers of ops.
#pragma once
#include "cuda/tensor.h"

namespace taut {

struct GridLaunch {
  cudaStream_t stream;

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int64_t blocks, int threads,
                  int shared_bytes, const Params& params) const {
    check(blocks < int64_t{1} << 31, name, "blocks must be fewer than 2^31, got ", blocks);
    constexpr int kAnyKernelMay = 48 * 1024;
    if (shared_bytes > kAnyKernelMay)
      check_cuda_call(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          name);
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params);
    check_cuda_call(cudaGetLastError(), name);
  }
};

inline int device_attribute(cudaDeviceAttr attribute, int32_t device) {
  int value = 0;
  check_cuda_call(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}

}  // namespace taut
