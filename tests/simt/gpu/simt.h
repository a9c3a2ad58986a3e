// The interface of ../simt.h on a real GPU: the cases, compiled by nvcc with this header instead,
// check the instructions themselves. Buffers are copied to the GPU and back, and pointers into them
// (and tensor maps over them) are exchanged inside of the kernel's parameters.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/ptx/tensor_map.h"

namespace simt {

inline void check(cudaError_t status, const char* kernel) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(status));
}

// What encode_tensor_map leaves in the parameters, until the launch knows the GPU's address.
struct MapRequest {
  uint64_t magic;
  uint64_t base;
  uint64_t sizes[4], strides[3];
  uint32_t box[4];
  uint16_t element_bytes, rank, swizzle;
};
constexpr uint64_t kMapRequest = 0x70616d726f736e75;
static_assert(sizeof(MapRequest) <= sizeof(taut::ptx::TensorMap), "the request is a tensor map");

class Launch {
 public:
  Launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes)
      : kernel_(kernel), grid_(grid), block_(block), shared_bytes_(shared_bytes) {}

  // The GPU has its own order.
  Launch& schedule(int, uint64_t) { return *this; }
  Launch& architecture(int) { return *this; }  // the GPU is what it is
  template <class T>
  Launch& reads(const T* pointer, size_t count) {
    return add(pointer, count * sizeof(T), false);
  }
  template <class T>
  Launch& writes(T* pointer, size_t count) {
    return add(pointer, count * sizeof(T), true);
  }

  template <class Params>
  void operator()(void (*kernel)(Params), const Params& params) {
    for (Buffer& b : buffers_) {
      check(cudaMalloc(&b.device, b.bytes), kernel_);
      check(cudaMemcpy(b.device, b.host, b.bytes, cudaMemcpyHostToDevice), kernel_);
    }
    Params translated = params;
    translate(reinterpret_cast<uint8_t*>(&translated), sizeof translated);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(shared_bytes_)),
          kernel_);
    kernel<<<grid_, block_, shared_bytes_>>>(translated);
    check(cudaGetLastError(), kernel_);
    check(cudaDeviceSynchronize(), kernel_);
    for (Buffer& b : buffers_) {
      if (b.writable)
        check(cudaMemcpy(const_cast<uint8_t*>(b.host), b.device, b.bytes, cudaMemcpyDeviceToHost),
              kernel_);
      check(cudaFree(b.device), kernel_);
    }
  }

 private:
  struct Buffer {
    const uint8_t* host;
    size_t bytes;
    bool writable;
    uint8_t* device;
  };

  Launch& add(const void* pointer, size_t bytes, bool writable) {
    if (bytes) buffers_.push_back({static_cast<const uint8_t*>(pointer), bytes, writable, nullptr});
    return *this;
  }

  // The GPU's address for one in a buffer, or the same.
  uint64_t translated_address(uint64_t address) const {
    for (const Buffer& b : buffers_) {
      const auto begin = reinterpret_cast<uint64_t>(b.host);
      if (address >= begin && address < begin + b.bytes)
        return reinterpret_cast<uint64_t>(b.device) + (address - begin);
    }
    return address;
  }

  void translate(uint8_t* bytes, size_t size) const {
    for (size_t i = 0; i + 8 <= size; i += 8) {
      uint64_t word;
      memcpy(&word, bytes + i, 8);
      if (word == kMapRequest) {
        encode(bytes + i);
        i += sizeof(taut::ptx::TensorMap) - 8;
        continue;
      }
      word = translated_address(word);
      memcpy(bytes + i, &word, 8);
    }
  }

  void encode(uint8_t* place) const {
    MapRequest r;
    memcpy(&r, place, sizeof r);
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found),
          kernel_);
    const auto type = r.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                      : r.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                      : r.element_bytes == 4 ? CU_TENSOR_MAP_DATA_TYPE_UINT32
                                             : CU_TENSOR_MAP_DATA_TYPE_UINT64;
    const cuuint32_t every[4] = {1, 1, 1, 1};
    alignas(64) CUtensorMap map;
    const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
        &map, type, r.rank, reinterpret_cast<void*>(translated_address(r.base)),
        reinterpret_cast<cuuint64_t*>(r.sizes), reinterpret_cast<cuuint64_t*>(r.strides), r.box,
        every, CU_TENSOR_MAP_INTERLEAVE_NONE,
        r.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
        CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS)
      throw std::runtime_error(std::string(kernel_) + ": cuTensorMapEncodeTiled refuses, error " +
                               std::to_string(status));
    memcpy(place, &map, sizeof map);
  }

  const char* kernel_;
  dim3 grid_, block_;
  size_t shared_bytes_;
  std::vector<Buffer> buffers_;
};

inline const char* run(const std::function<void()>& launches) {
  static std::string message;
  try {
    launches();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

inline taut::ptx::TensorMap encode_tensor_map(const void* base, int element_bytes, int rank,
                                              const uint64_t* sizes, const uint64_t* strides,
                                              const uint32_t* box, int swizzle) {
  MapRequest r{};
  r.magic = kMapRequest;
  r.base = reinterpret_cast<uint64_t>(base);
  r.element_bytes = element_bytes;
  r.rank = rank;
  r.swizzle = swizzle;
  for (int d = 0; d < rank; ++d) {
    r.sizes[d] = sizes[d];
    r.box[d] = box[d];
    if (d) r.strides[d - 1] = strides[d - 1];
  }
  taut::ptx::TensorMap map{};
  memcpy(&map, &r, sizeof r);
  return map;
}

}  // namespace simt
