// Varlen attention, forward: what the Hopper kernels do of it, as their launcher runs them.
#include <stdexcept>

#include "attention_case.h"
#include "cuda/attention_hopper_launch.cuh"

extern "C" const char* forward_hopper(const taut::AttentionParams* p, const Memory* memory,
                                      int64_t is_bf16, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const Executor launch{*memory, static_cast<int>(schedule), seed};
    const auto encode = [](taut::ptx::TensorMap& map, const void* data, const uint64_t* sizes,
                           const uint64_t* strides, const uint32_t* box) {
      map = simt::encode_tensor_map(data, 2, 3, sizes, strides, box, 128);
      return true;
    };
    if (!(is_bf16 ? taut::launch_attention_hopper<taut::bf16>(*p, launch, encode)
                  : taut::launch_attention_hopper<taut::f16>(*p, launch, encode)))
      throw std::runtime_error("the Hopper kernels do not serve this");
  });
}
