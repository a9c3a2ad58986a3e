// Which calls the Hopper kernels serve, for the launcher and for the host executor alike.
#pragma once
#include "cuda/attention_hopper.cuh"
#include "cuda/attention_hopper_backward.cuh"
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
              const Encode& encode, int box_tokens = 64) {
  const uint64_t sizes[3] = {static_cast<uint64_t>(head_dim), static_cast<uint64_t>(heads),
                             static_cast<uint64_t>(tokens)};
  const uint64_t strides[2] = {2 * static_cast<uint64_t>(rows.head_stride),
                               2 * static_cast<uint64_t>(rows.token_stride)};
  const uint32_t box[3] = {64, 1, static_cast<uint32_t>(box_tokens)};
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

// The kernels of queries, or of keys, of one width; false if a tensor has no map.
template <class T, int D, bool kOfKeys, Scores kScores, class Launch, class Encode>
bool launch_hopper_gradient(const AttentionBackwardParams& b, const Launch& launch,
                            const Encode& encode) {
  using Long = HopperBackwardShape<T, D, 2, kOfKeys, kScores>;
  using One = HopperBackwardShape<T, D, 1, kOfKeys, kScores>;
  const AttentionParams& p = b.forward;
  const int heads_kv = p.heads / p.group, box = kOfKeys ? One::kColumns : 64;
  HopperBackwardParams h{};
  h.backward = b;
  if (!make_map(h.q, p.q, p.total_q, p.heads, p.head_dim, encode, box) ||
      !make_map(h.grad_out, b.grad_out, p.total_q, p.heads, p.head_dim, encode, box) ||
      !make_map(h.k, p.k, p.total_k, heads_kv, p.head_dim, encode) ||
      !make_map(h.v, p.v, p.total_k, heads_kv, p.head_dim, encode))
    return false;
  const int64_t units =
      kOfKeys ? int64_t{b.key_plan_items} * heads_kv : int64_t{p.plan_items} * p.heads;
  const char* name = kOfKeys ? "attention_hopper_keys" : "attention_hopper_queries";
  if (has_long(p))
    launch(name, attention_hopper_backward_kernel<Long>, Long::kThreads, Long::kSharedBytes, units,
           h);
  launch(name, attention_hopper_backward_kernel<One>, One::kThreads, One::kSharedBytes, units, h);
  return true;
}

template <class T, int D, Scores kScores, class Launch, class Encode>
bool launch_hopper_gradients(const AttentionBackwardParams& b, const Launch& launch,
                             const Encode& encode) {
  return launch_hopper_gradient<T, D, false, kScores>(b, launch, encode) &&
         launch_hopper_gradient<T, D, true, kScores>(b, launch, encode);
}

// The same of the backward, whose kernels of queries come before those of keys.
template <class T, class Launch, class Encode>
bool launch_attention_hopper_backward(const AttentionBackwardParams& b, const Launch& launch,
                                      const Encode& encode) {
  const AttentionParams& p = b.forward;
  if (!hopper_serves(p)) return false;
  const bool has_alibi = p.alibi_slopes != nullptr;
  if (p.head_dim <= 64)
    return has_alibi ? launch_hopper_gradients<T, 64, Scores::alibi>(b, launch, encode)
                     : launch_hopper_gradients<T, 64, Scores::plain>(b, launch, encode);
  return has_alibi ? launch_hopper_gradients<T, 128, Scores::alibi>(b, launch, encode)
                   : launch_hopper_gradients<T, 128, Scores::plain>(b, launch, encode);
}

}  // namespace taut
