// The bodies of attention.h, for attention_<dtype>.cu to instantiate.
#pragma once
#include "cuda/attention.h"
#include "cuda/attention_launch.cuh"
#include "cuda/tensor.h"

namespace taut {

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

template <class T>
const char* run_attention(AttentionParams p, int32_t device, cudaStream_t stream) {
  if constexpr (kHasHopper)
    p.on_hopper = compute_capability(device) == 90 && run_attention_hopper<T>(p, device, stream);
  launch_attention<T>(p, PersistentLaunch{device, stream});
  return p.on_hopper ? "native/hopper" : "native";
}
template <class T>
void run_attention_backward(const AttentionBackwardParams& b, int32_t device, cudaStream_t stream) {
  launch_attention_backward<T>(b, PersistentLaunch{device, stream});
}

}  // namespace taut
