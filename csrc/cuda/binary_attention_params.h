// What crosses from the launchers of attention over packed signs to its kernels.
#pragma once
#include "common/types.h"
#include "cuda/attention_params.h"

namespace taut {

// Where one of q, k, v lives, a word of 64 signs per token and head; strides in words.
struct BitRows {
  const uint64_t* data;
  int64_t token_stride, head_stride;
};

// The rows of a batch, and the order to take them in: see attention_params.h.
struct BinaryBatch {
  const int32_t* cu_seqlens;
  const int32_t* plan;
  int32_t plan_items, batch, total, heads;
};

constexpr int kDistances = 65;  // 64 channels differ in 0 to 64

struct BinaryAttentionParams {
  BitRows q, k, v;
  BinaryBatch batch;
  int32_t lowest;  // bool: a key is attended to where at least this many channels agree
  bool elastic;
  // E[x] = round(exp(-2 softmax_scale x) (2^24 - 1)); the row's threshold is floor(half_alpha sum).
  int32_t exponentials[kDistances];
  double half_alpha;
  const int32_t* thresholds;  // (heads, 64) for one rail, (3, heads, 64) for two, null: the sign
  int32_t rails;
  void* out;  // int32 (total, heads, 64) without rails; words (total, heads), (total, 2, heads)
};

struct BinaryQkAttentionParams {
  BitRows q, k;
  // (total, heads, 64), of the type of out, or int8 with strides in pairs and a scale per token.
  AttentionRows v;
  const float* v_scale;  // (total,), null unless v is int8
  BinaryBatch batch;
  float scale;
  const float* alibi_slopes;  // (heads,) or null
  void* out;                  // (total, heads, 64)
};

}  // namespace taut
