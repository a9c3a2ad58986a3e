// Varlen attention, forward: what the Hopper kernels do of it, as their launcher runs them.
#include <stdexcept>

#include "attention_case.h"
#include "cuda/attention_hopper_launch.cuh"

extern "C" const char* forward_hopper(const taut::AttentionParams* p, const Memory* memory,
                                      int64_t is_bf16, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    if (!taut::hopper_serves(*p)) throw std::runtime_error("the Hopper kernels do not serve this");
    const Executor launch{*memory, static_cast<int>(schedule), seed};
    const auto encode = [](const void* data, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* box) {
      return simt::encode_tensor_map(data, 2, 3, sizes, strides, box, 128);
    };
    if (is_bf16) {
      taut::launch_attention_hopper<taut::bf16>(*p, launch, encode);
    } else {
      taut::launch_attention_hopper<taut::f16>(*p, launch, encode);
    }
  });
}
