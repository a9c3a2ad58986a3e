// Attention over packed signs, as the launchers run it.
#include "cuda/binary_attention_launch.cuh"
#include "launch.h"

constexpr int64_t kBlocks = 3;  // few, so that each takes several units

extern "C" const char* binary_attention(const taut::BinaryAttentionParams* p, const Memory* memory,
                                        int64_t schedule, uint64_t seed) {
  return simt::run(
      [&] { taut::launch_binary_attention(*p, Executor{*memory, schedule, seed, kBlocks}); });
}

extern "C" const char* binary_qk_attention(const taut::BinaryQkAttentionParams* p,
                                           const Memory* memory, int64_t is_bf16, int64_t schedule,
                                           uint64_t seed) {
  return simt::run([&] {
    const Executor launch{*memory, schedule, seed, kBlocks};
    if (is_bf16) {
      taut::launch_binary_qk_attention<taut::bf16>(*p, launch);
    } else {
      taut::launch_binary_qk_attention<taut::f16>(*p, launch);
    }
  });
}
