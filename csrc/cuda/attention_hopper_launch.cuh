// Which calls the Hopper kernels serve, for the launcher and for the host executor alike.
#pragma once
#include "cuda/attention_hopper.cuh"
#include "cuda/attention_launch.cuh"

namespace taut {

// The smaller heads would leave half of a tile empty, the larger ones need more shared memory. A
// bias of q, k or v would have to be added between copy and product.
inline bool hopper_serves(const AttentionParams& p) {
  const bool has_bias = p.q.bias != nullptr || p.k.bias != nullptr || p.v.bias != nullptr;
  return p.head_dim > 32 && p.head_dim <= 128 && scores_of(p) != Scores::all && !has_bias &&
         p.total_q > 0 && p.total_k > 0;
}

template <class T, int D, Scores kScores, class Launch>
void launch_hopper_kernels(const HopperParams& h, const Launch& launch) {
  using Long = HopperShape<T, D, 2, kScores>;
  using One = HopperShape<T, D, 1, kScores>;
  const AttentionParams& p = h.attention;
  const int64_t units = int64_t{p.plan_items} * p.heads;
  if (has_long(p))
    launch("attention_hopper_long", attention_hopper_kernel<Long>, Long::kThreads,
           Long::kSharedBytes, units, h);
  launch("attention_hopper_one", attention_hopper_kernel<One>, One::kThreads, One::kSharedBytes,
         units, h);
}

// `encode(data, sizes, strides, box)` makes the map of a tensor with three dimensions of 16-bit
// elements, from the innermost out, strides in bytes; boxes are swizzled by 128 bytes.
template <class Encode>
ptx::TensorMap map_of(const AttentionRows& rows, int tokens, int heads, int head_dim,
                      const Encode& encode) {
  const uint64_t sizes[3] = {static_cast<uint64_t>(head_dim), static_cast<uint64_t>(heads),
                             static_cast<uint64_t>(tokens)};
  const uint64_t strides[2] = {2 * static_cast<uint64_t>(rows.head_stride),
                               2 * static_cast<uint64_t>(rows.token_stride)};
  const uint32_t box[3] = {64, 1, 64};
  return encode(rows.data, sizes, strides, box);
}

// The classes long and one of a call that hopper_serves.
template <class T, class Launch, class Encode>
void launch_attention_hopper(const AttentionParams& p, const Launch& launch, const Encode& encode) {
  const HopperParams h{map_of(p.q, p.total_q, p.heads, p.head_dim, encode),
                       map_of(p.k, p.total_k, p.heads / p.group, p.head_dim, encode),
                       map_of(p.v, p.total_k, p.heads / p.group, p.head_dim, encode), p};
  const bool has_alibi = p.alibi_slopes != nullptr;
  if (p.head_dim <= 64)
    has_alibi ? launch_hopper_kernels<T, 64, Scores::alibi>(h, launch)
              : launch_hopper_kernels<T, 64, Scores::plain>(h, launch);
  else
    has_alibi ? launch_hopper_kernels<T, 128, Scores::alibi>(h, launch)
              : launch_hopper_kernels<T, 128, Scores::plain>(h, launch);
}

}  // namespace taut
