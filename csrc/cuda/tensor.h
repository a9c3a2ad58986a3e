// Small conveniences over the stable ABI that every CUDA launcher uses.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "common/check.h"

// Declared by torch's headers only where torch has CUDA; found when the library is loaded.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                             void** ret_stream);

namespace taut {

using torch::stable::accelerator::DeviceGuard;

inline void check_cuda_call(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline void check_cuda(const Tensor& t, int32_t device, const char* op, const char* name) {
  check(t.is_cuda() && t.get_device_index() == device, op, name, " must be on cuda:", device,
        " like the other arguments");
}

// An uninitialised contiguous tensor on `device`.
inline Tensor empty_cuda(std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    const int64_t size = sizes.begin()[i];
    stride *= size > 1 ? size : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cuda(), device, &handle));
  return Tensor(handle);
}

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Zero bits are zero in every dtype.
inline void fill_zero(const Tensor& t, cudaStream_t stream) {
  if (const int64_t elements = t.numel())
    check_cuda_call(cudaMemsetAsync(t.mutable_data_ptr(), 0,
                                    static_cast<size_t>(elements) * t.element_size(), stream),
                    "cudaMemsetAsync");
}

// Major and minor compute capability as one number: 80, 90, ...
inline int compute_capability(int32_t device) {
  int major = 0, minor = 0;
  check_cuda_call(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                  "compute capability");
  check_cuda_call(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                  "compute capability");
  return 10 * major + minor;
}

// How many blocks of `kernel` the whole device holds at once; asked once per kernel and device.
// Also lets the kernel have its dynamic shared memory.
inline int resident_blocks(const void* kernel, int threads, int shared_bytes, int32_t device) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int32_t>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto place = known.find({kernel, device});
  if (place == known.end()) {
    int processors = 0, per_processor = 0;
    check_cuda_call(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "shared memory of a kernel");
    check_cuda_call(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                    "multiprocessor count");
    check_cuda_call(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads,
                                                                  shared_bytes),
                    "occupancy of a kernel");
    const int blocks = processors * (per_processor > 0 ? per_processor : 1);
    place = known.emplace(std::make_pair(kernel, device), blocks).first;
  }
  return place->second;
}

}  // namespace taut
