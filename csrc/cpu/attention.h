// Parameters and kernels of varlen attention on the CPU.
#pragma once
#include <cstdint>

#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

// Where one of q, k, v lives: strides in elements, channels of a head contiguous. `bias` is
// (heads, head_dim), contiguous, added to every token, or null.
struct AttentionInput {
  const void* data;
  const void* bias;
  int64_t token_stride, head_stride;
};

struct AttentionParams {
  AttentionInput q, k, v;
  void* out;         // (total_q, heads, head_dim)
  float* logsumexp;  // (heads, total_q)
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  int64_t total_q, heads, heads_kv, head_dim;
  float softmax_scale, softcap;
  // Biases and limits by distance = i + len_k - len_q - j.
  const float* alibi_slopes;  // null, or the slope of head h at [sequence * slopes_stride + h]
  int64_t slopes_stride;
  const float* relative_bias;  // null, or (heads, 2 * relative_limit + 1)
  int64_t relative_limit;
  int64_t window_left, window_right;  // -window_right <= distance <= window_left
  bool by_distance;                   // any of these is in use
  bool clip;
  float clip_slope, clip_offset;  // p = clamp(clip_slope * softmax + clip_offset, 0, 1)
  bool dropout;
  uint32_t dropout_threshold;  // keep where the random word is at least this
  float keep_scale;
  uint32_t seed[2];
};

// Rows [first_row, first_row + rows) of the queries of one sequence.
struct AttentionTask {
  int32_t sequence, first_row, rows;
};

// Keys are taken in blocks, with an online softmax over the blocks, and queries in tasks, so that
// scratch is bounded: at head_dim 64 a block's K and V (128 KiB as fp32), its scores (32 KiB) and a
// task's sums (64 KiB) stay in L2.
constexpr int64_t kAttentionKeys = 256;
constexpr int64_t kAttentionRows = 256;

constexpr int64_t attention_scratch_bytes(int64_t head_dim) {
  const int64_t columns = (head_dim + 31) / 32 * 32;
  const int64_t floats = columns * (3 * kAttentionKeys + 2 * 32 + kAttentionRows)  // k v q out
                         + 2 * 32 * kAttentionKeys                                 // scores
                         + 2 * kAttentionRows                                      // max, sum
                         + kAttentionRows + kAttentionKeys;                        // distances
  return 4 * floats + 1024;
}

using AttentionKernel = void(const AttentionParams&, const AttentionTask&, int64_t head,
                             void* scratch);
TAUT_DECLARE_KERNEL(attention_f32, AttentionKernel)
TAUT_DECLARE_KERNEL(attention_bf16, AttentionKernel)
TAUT_DECLARE_KERNEL(attention_f16, AttentionKernel)

// A gradient to write: like AttentionInput, without a bias.
struct AttentionGradient {
  void* data;
  int64_t token_stride, head_stride;
};

struct AttentionBackwardParams {
  AttentionParams forward;  // its out and logsumexp are not used
  AttentionInput out, grad_out;
  const float* logsumexp;
  AttentionGradient dq, dk, dv;
  // Null, or the sums of the scores' gradients along each diagonal, from which those of the biases
  // follow: of head h and sequence b at [h * diagonals_stride + cu_seqlens_q[b] + cu_seqlens_k[b]],
  // entry i - j + len_k - 1 of query i and key j.
  float* diagonals;
  int64_t diagonals_stride;
};

constexpr int64_t attention_backward_scratch_bytes(int64_t head_dim, int64_t heads_per_kv,
                                                   int64_t longest_queries) {
  const int64_t columns = (head_dim + 31) / 32 * 32;
  const int64_t rows = heads_per_kv * ((longest_queries + 31) / 32 * 32);
  const int64_t floats = columns * (4 * kAttentionKeys + 4 * 32 + rows)  // k v dk dv, q do, dq
                         + rows                                          // delta
                         + (6 * 32 + 1) * kAttentionKeys + 3 * 32;       // scores, distances
  return 4 * floats + 1024;
}

// One task is a sequence and a head of k and v.
using AttentionBackwardKernel = void(const AttentionBackwardParams&, int64_t sequence,
                                     int64_t head_kv, void* scratch);
TAUT_DECLARE_KERNEL(attention_backward_f32, AttentionBackwardKernel)
TAUT_DECLARE_KERNEL(attention_backward_bf16, AttentionBackwardKernel)
TAUT_DECLARE_KERNEL(attention_backward_f16, AttentionBackwardKernel)

}  // namespace taut
