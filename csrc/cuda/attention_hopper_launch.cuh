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

// `encode(map, data, sizes, strides, box)` makes the map of a tensor with three dimensions of
// 16-bit elements, from the innermost out, strides in bytes, whose boxes are swizzled by 128 bytes.
// Whether it can.
template <class Encode>
bool make_map(ptx::TensorMap& map, const AttentionRows& rows, int tokens, int heads, int head_dim,
              const Encode& encode) {
  const uint64_t sizes[3] = {static_cast<uint64_t>(head_dim), static_cast<uint64_t>(heads),
                             static_cast<uint64_t>(tokens)};
  const uint64_t strides[2] = {2 * static_cast<uint64_t>(rows.head_stride),
                               2 * static_cast<uint64_t>(rows.token_stride)};
  const uint32_t box[3] = {64, 1, 64};
  return encode(map, rows.data, sizes, strides, box);
}

// Launches what the Hopper kernels do of a call, the items of the classes long and one; false, and
// no launch, if they do not serve it or its tensors have no maps.
template <class T, class Launch, class Encode>
bool launch_attention_hopper(const AttentionParams& p, const Launch& launch, const Encode& encode) {
  if (!hopper_serves(p)) return false;
  HopperParams h{};
  h.attention = p;
  const int heads_kv = p.heads / p.group;
  if (!make_map(h.q, p.q, p.total_q, p.heads, p.head_dim, encode) ||
      !make_map(h.k, p.k, p.total_k, heads_kv, p.head_dim, encode) ||
      !make_map(h.v, p.v, p.total_k, heads_kv, p.head_dim, encode))
    return false;
  const bool has_alibi = p.alibi_slopes != nullptr;
  if (p.head_dim <= 64)
    has_alibi ? launch_hopper_kernels<T, 64, Scores::alibi>(h, launch)
              : launch_hopper_kernels<T, 64, Scores::plain>(h, launch);
  else
    has_alibi ? launch_hopper_kernels<T, 128, Scores::alibi>(h, launch)
              : launch_hopper_kernels<T, 128, Scores::plain>(h, launch);
  return true;
}

}  // namespace taut
