// Launches of kernels, for the launchers of ops.
#pragma once
#include "cuda/tensor.h"

namespace taut {

inline int device_attribute(cudaDeviceAttr attribute, int32_t device) {
  int value = 0;
  check_cuda_call(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}

// A block for each piece of work.
struct GridLaunch {
  cudaStream_t stream;

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int64_t blocks, int threads,
                  int shared_bytes, const Params& params) const {
    check(blocks < int64_t{1} << 31, name, "blocks must be fewer than 2^31, got ", blocks);
    constexpr int kAnyKernelMay = 48 * 1024;
    if (shared_bytes > kAnyKernelMay) {
      // All that a block can have: other threads may launch the same kernel with more than this.
      int device = 0;
      check_cuda_call(cudaGetDevice(&device), name);
      const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      check_cuda_call(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
    }
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params);
    check_cuda_call(cudaGetLastError(), name);
  }
};

// As many blocks as run at once, or fewer where there is less work; they take it in turn.
struct PersistentLaunch {
  int32_t device;
  cudaStream_t stream;

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int threads, int shared_bytes,
                  int64_t units, const Params& params) const {
    const void* function = reinterpret_cast<const void*>(kernel);
    const int64_t resident = resident_blocks(function, threads, shared_bytes, device);
    const unsigned blocks = static_cast<unsigned>(units < 1          ? 1
                                                  : units < resident ? units
                                                                     : resident);
    kernel<<<blocks, threads, shared_bytes, stream>>>(params);
    check_cuda_call(cudaGetLastError(), name);
  }
};

}  // namespace taut
