// What crosses from the launchers of varlen attention to its kernels on the GPU.
#pragma once
#include <cstdint>

#include "cuda/ptx/tensor_map.h"

namespace taut {

// ---- the plan
// int32 (kPlanHeader + items + batch, 2). The header's rows hold the numbers below. Row kPlanHeader
// + i is item i: (sequence, its first row of q); an item covers kLongRows rows of a long sequence,
// else kShortRows. Behind the items comes one row (sequence, n) per sequence, n = max(len_q,
// len_k). Sequences come by falling n, then by index, items likewise, then by row; so those of a
// class are neighbours:
//   long  n > kShortLength        two   n > 16: a tile of 64 rows holds two heads of the sequence
//   one   n > kPackedLength       four  a tile holds four heads
// Unused rows are -1; all are, and the header's counts 0, when cu_seqlens are malformed.
enum PlanField : int {
  kPlanError,  // a PlanError
  kPlanUsed,   // rows of q that belong to a sequence
  kPlanLong,   // the end of each class of items
  kPlanOne,
  kPlanTwo,
  kPlanFour,
};
constexpr int kPlanHeader = 4;
constexpr int kShortRows = 64, kLongRows = 128, kShortLength = 256, kPackedLength = 32;
// cu_seqlens must start at 0, not decrease, and end within the tokens.
enum PlanError : int { kPlanFine, kPlanStart, kPlanDecreases, kPlanEnd };

struct AttentionPlanParams {
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  int32_t batch, total_q, total_k;
  int32_t items;  // capacity: total_q / kShortRows + batch
  int32_t* plan;
};

// ---- attention

// Where one of q, k, v lives: strides in elements, channels of a head contiguous, rows aligned to
// 16 bytes. `bias` is (heads, head_dim), contiguous, added to every token, or null.
struct AttentionRows {
  const void* data;
  const void* bias;
  int32_t token_stride, head_stride;
};

struct AttentionParams {
  AttentionRows q, k, v;
  void* out;         // (total_q, heads, head_dim)
  float* logsumexp;  // (heads, total_q)
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  const int32_t* plan;
  int32_t plan_items;
  int32_t batch, total_q, total_k;
  int32_t heads, group, head_dim;  // group: heads of q per head of k and v
  float scale;
  // Biases and limits by distance = i + len_k - len_q - j.
  const float* alibi_slopes;  // null, or the slope of head h at [sequence * slopes_stride + h]
  int32_t slopes_stride;
  const float* relative_bias;  // null, or (heads, 2 * relative_limit + 1)
  int32_t relative_limit;
  int32_t window_left, window_right;  // -window_right <= distance <= window_left
  float softcap;                      // 0: off
  bool clip, dropout;
  float clip_slope, clip_offset;  // p = clamp(clip_slope * softmax + clip_offset, 0, 1)
  uint32_t dropout_threshold;     // keep where the random word is at least this
  float keep_scale;
  uint32_t seed[2];
  bool on_hopper;  // the Hopper kernels take the items of the classes long and one
};
constexpr int32_t kNoWindow = 1 << 30;

// For attention_hopper.cuh: boxes of 64 tokens of one head and 64 channels, swizzled by 128 bytes.
struct HopperParams {
  ptx::TensorMap q, k, v;
  AttentionParams attention;
};

// A gradient to write, strides in elements.
struct AttentionGradient {
  void* data;
  int32_t token_stride, head_stride;
};

// Launches of a backward pass: short sequences whole, then the queries of long ones, then their
// keys.
enum class BackwardPhase { short_sequences, queries, keys };

struct AttentionBackwardParams {
  BackwardPhase phase;
  AttentionParams forward;  // its out is not used
  AttentionRows out, grad_out;
  AttentionGradient dq, dk, dv;
  // (heads, total_q), from the queries to the keys:
  float* lse2;              // logsumexp in units of log2, +inf for rows that see no key
  float* delta;             // sum over keys of softmax times its gradient
  const int32_t* key_plan;  // the plan of the other side, items are rows of k
  int32_t key_plan_items;
  // Shares of the gradients of the biases, one per tile of kShortRows rows and head; tile t of
  // sequence b is at cu_seqlens_q[b] / kShortRows + b + t.
  float* slope_shares;     // (plan_items, heads) or null
  float* relative_shares;  // (plan_items, heads, 2 * relative_limit + 1) or null
};

// For attention_hopper_backward.cuh: boxes of 64 channels of one head, of 64 tokens or, where a
// kernel's tiles of queries are smaller, of as many tokens of q and of the gradient of out.
struct HopperBackwardParams {
  ptx::TensorMap q, k, v, grad_out;
  AttentionBackwardParams backward;
};

}  // namespace taut
