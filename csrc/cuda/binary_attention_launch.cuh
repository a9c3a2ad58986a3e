// Which kernels serve attention over packed signs, for the launchers and for the host executor
// alike: see attention_launch.cuh for `launch`.
#pragma once
#include "cuda/binary_attention.cuh"
#include "cuda/binary_qk_attention.cuh"

namespace taut {

template <bool kElastic, class Launch>
void launch_binary_attention_of(const BinaryAttentionParams& p, const Launch& launch) {
  using Long = BinaryShape<2, kElastic>;
  using Short = BinaryShape<1, kElastic>;
  const int64_t units = int64_t{p.batch.plan_items} * p.batch.heads;
  if (p.batch.total > kShortLength)
    launch("binary_attention_long", binary_attention_long_kernel<Long>, Long::kThreads,
           Long::kSharedBytes, units, p);
  launch("binary_attention_short", binary_attention_short_kernel<Short>, Short::kThreads,
         Short::kSharedBytes, units, p);
}

template <class Launch>
void launch_binary_attention(const BinaryAttentionParams& p, const Launch& launch) {
  if (p.elastic) return launch_binary_attention_of<true>(p, launch);
  launch_binary_attention_of<false>(p, launch);
}

template <class T, class Value, class Launch>
void launch_binary_qk_attention_of(const BinaryQkAttentionParams& p, const Launch& launch) {
  using Long = BinaryQkShape<T, Value, 2>;
  using Short = BinaryQkShape<T, Value, 1>;
  const int64_t units = int64_t{p.batch.plan_items} * p.batch.heads;
  if (p.batch.total > kShortLength)
    launch("binary_qk_attention", binary_qk_attention_kernel<Long>, Long::kThreads,
           Long::kSharedBytes, units, p);
  launch("binary_qk_attention", binary_qk_attention_kernel<Short>, Short::kThreads,
         Short::kSharedBytes, units, p);
}

template <class T, class Launch>
void launch_binary_qk_attention(const BinaryQkAttentionParams& p, const Launch& launch) {
  if (p.v_scale != nullptr) return launch_binary_qk_attention_of<T, int8_t>(p, launch);
  launch_binary_qk_attention_of<T, T>(p, launch);
}

}  // namespace taut
