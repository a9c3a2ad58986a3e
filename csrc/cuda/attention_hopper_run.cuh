// The bodies of run_attention_hopper and run_attention_hopper_backward, for
// attention_{forward,backward}_<dtype>_sm90a.cu to instantiate.
#pragma once
#include "cuda/attention_hopper_launch.cuh"
#include "cuda/attention_run.cuh"
#include "cuda/encode_tensor_map.h"

namespace taut {

template <class T>
bool run_attention_hopper(const AttentionParams& p, int32_t device, cudaStream_t stream) {
  return launch_attention_hopper<T>(p, PersistentLaunch{device, stream}, encode_tensor_map);
}
template <class T>
bool run_attention_hopper_backward(const AttentionBackwardParams& b, int32_t device,
                                   cudaStream_t stream) {
  return launch_attention_hopper_backward<T>(b, PersistentLaunch{device, stream},
                                             encode_tensor_map);
}

}  // namespace taut
