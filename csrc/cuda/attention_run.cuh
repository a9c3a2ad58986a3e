// The bodies of attention.h, for attention_{forward,backward}_<dtype>.cu to instantiate.
#pragma once
#include "cuda/attention.h"
#include "cuda/attention_launch.cuh"
#include "cuda/launch.cuh"

namespace taut {

template <class T>
const char* run_attention(AttentionParams p, int32_t device, cudaStream_t stream) {
  if constexpr (kHasHopper)
    p.on_hopper = compute_capability(device) == 90 && run_attention_hopper<T>(p, device, stream);
  launch_attention<T>(p, PersistentLaunch{device, stream});
  return p.on_hopper ? "native/hopper" : "native";
}
template <class T>
const char* run_attention_backward(AttentionBackwardParams b, int32_t device, cudaStream_t stream) {
  bool& on_hopper = b.forward.on_hopper;
  if constexpr (kHasHopper)
    on_hopper =
        compute_capability(device) == 90 && run_attention_hopper_backward<T>(b, device, stream);
  launch_attention_backward<T>(b, PersistentLaunch{device, stream});
  return on_hopper ? "native/hopper" : "native";
}

}  // namespace taut
