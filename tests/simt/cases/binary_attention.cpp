// Attention over packed signs, as the launchers run it.
#include "attention_case.h"
#include "cuda/binary_attention_launch.cuh"

extern "C" const char* binary_attention(const taut::BinaryAttentionParams* p, const Memory* memory,
                                        int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    taut::launch_binary_attention(*p, Executor{*memory, static_cast<int>(schedule), seed});
  });
}

extern "C" const char* binary_qk_attention(const taut::BinaryQkAttentionParams* p,
                                           const Memory* memory, int64_t is_bf16, int64_t schedule,
                                           uint64_t seed) {
  return simt::run([&] {
    const Executor launch{*memory, static_cast<int>(schedule), seed};
    if (is_bf16) {
      taut::launch_binary_qk_attention<taut::bf16>(*p, launch);
    } else {
      taut::launch_binary_qk_attention<taut::f16>(*p, launch);
    }
  });
}
