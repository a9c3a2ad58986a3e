// Varlen attention, forward: what the Hopper kernels do of it, as their launcher runs them.
#include <stdexcept>

#include "attention_case.h"
#include "cuda/attention_hopper_launch.cuh"

extern "C" const char* forward_hopper(const taut::AttentionParams* p, const Memory* memory,
                                      int64_t is_bf16, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const Executor launch{*memory, static_cast<int>(schedule), seed};
    if (!(is_bf16 ? taut::launch_attention_hopper<taut::bf16>(*p, launch, encode_map)
                  : taut::launch_attention_hopper<taut::f16>(*p, launch, encode_map)))
      throw std::runtime_error("the Hopper kernels do not serve this");
  });
}
