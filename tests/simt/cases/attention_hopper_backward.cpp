// Varlen attention, backward: what the Hopper kernels do of it, as their launcher runs them.
#include <stdexcept>

#include "attention_case.h"
#include "cuda/attention_hopper_launch.cuh"

extern "C" const char* backward_hopper(const taut::AttentionBackwardParams* b, const Memory* memory,
                                       int64_t is_bf16, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const Executor launch{*memory, static_cast<int>(schedule), seed};
    if (!(is_bf16 ? taut::launch_attention_hopper_backward<taut::bf16>(*b, launch, encode_map)
                  : taut::launch_attention_hopper_backward<taut::f16>(*b, launch, encode_map)))
      throw std::runtime_error("the Hopper kernels do not serve this");
  });
}
