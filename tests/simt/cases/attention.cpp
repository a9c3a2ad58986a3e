// Varlen attention: the planner, forward and backward, as the launchers run them.
#include "attention_case.h"
#include "cuda/attention_backward_sums.cuh"
#include "cuda/attention_launch.cuh"
#include "cuda/attention_plan.cuh"

extern "C" const char* plan(const taut::AttentionPlanParams* p, const Memory* memory,
                            int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const unsigned blocks =
        p->batch > 0 ? (p->batch + taut::kPlanThreads - 1) / taut::kPlanThreads : 1;
    simt::Launch launch{"attention_plan", {blocks}, {taut::kPlanThreads}, taut::kPlanSharedBytes};
    launch.schedule(schedule, seed);
    for (int i = 0; i < 16; ++i)
      launch.reads(static_cast<const uint8_t*>(memory->reads[i]), memory->read_bytes[i]);
    launch.writes(static_cast<uint8_t*>(memory->writes[0]), memory->write_bytes[0]);
    launch(taut::attention_plan_kernel, *p);
  });
}

extern "C" const char* forward(const taut::AttentionParams* p, const Memory* memory,
                               int64_t is_bf16, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const Executor launch{*memory, static_cast<int>(schedule), seed};
    if (is_bf16) {
      taut::launch_attention<taut::bf16>(*p, launch);
    } else {
      taut::launch_attention<taut::f16>(*p, launch);
    }
  });
}

extern "C" const char* backward(const taut::AttentionBackwardParams* b, const Memory* memory,
                                int64_t is_bf16, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const Executor launch{*memory, static_cast<int>(schedule), seed};
    if (is_bf16) {
      taut::launch_attention_backward<taut::bf16>(*b, launch);
    } else {
      taut::launch_attention_backward<taut::f16>(*b, launch);
    }
  });
}

extern "C" const char* shares(const taut::SharesParams* p, const Memory* memory, int64_t rows,
                              int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const unsigned columns = (p->columns + taut::kSharesColumns - 1) / taut::kSharesColumns;
    simt::Launch launch{"sum_shares",
                        {static_cast<unsigned>(rows), columns},
                        {taut::kSharesThreads},
                        taut::kSharesSharedBytes};
    launch.schedule(schedule, seed);
    for (int i = 0; i < 16; ++i)
      launch.reads(static_cast<const uint8_t*>(memory->reads[i]), memory->read_bytes[i]);
    launch.writes(static_cast<uint8_t*>(memory->writes[0]), memory->write_bytes[0]);
    launch(taut::sum_shares_kernel, *p);
  });
}
