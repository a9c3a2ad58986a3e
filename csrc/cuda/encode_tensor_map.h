// The driver's cuTensorMapEncodeTiled, found at run time: nothing links to libcuda.
#pragma once
#include <cuda.h>

#include <cstring>

#include "cuda/ptx/tensor_map.h"
#include "cuda/tensor.h"

namespace taut {

// Of a tensor with three dimensions of 16-bit elements, from the innermost out, strides in bytes.
// Boxes are swizzled by 128 bytes. False if the driver has no such function or refuses.
inline bool encode_tensor_map(ptx::TensorMap& map, const void* data, const uint64_t (&sizes)[3],
                              const uint64_t (&strides)[2], const uint32_t (&box)[3]) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    check_cuda_call(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                     cudaEnableDefault, &status),
                    "cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  const uint32_t every[3] = {1, 1, 1};
  CUtensorMap encoded;
  const auto encodes = [&] {
    return encode(&encoded, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<void*>(data), sizes,
                  strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  if (encode == nullptr) return false;
  CUresult result = encodes();
  if (result == CUDA_ERROR_INVALID_CONTEXT) {
    // The thread has run nothing of CUDA yet, as autograd's may have: this gives it a context.
    int device = 0;
    check_cuda_call(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda_call(cudaSetDevice(device), "cudaSetDevice");
    result = encodes();
  }
  if (result != CUDA_SUCCESS) return false;
  static_assert(sizeof map == sizeof encoded, "a TensorMap is a CUtensorMap");
  std::memcpy(&map, &encoded, sizeof map);
  return true;
}

}  // namespace taut
