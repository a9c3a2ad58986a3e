// Parameters and kernels of attention over packed signs on the CPU. A head is one word per token.
#pragma once
#include <cstdint>

#include "common/types.h"
#include "cpu/attention.h"
#include "cpu/dispatch.h"

namespace taut {

// Where one of q, k, v lives: strides in words.
struct BitInput {
  const uint64_t* data;
  int64_t token_stride, head_stride;

  const uint64_t* at(int64_t token, int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

// E[x] = round(exp(-2 softmax_scale x) (2^24 - 1)) for x = 0 ... 64, zeros behind.
struct ExponentialTable {
  int32_t whole[80];
  uint8_t byte[3][128];  // the same, byte by byte
};

struct BinaryAttentionParams {
  BitInput q, k, v;
  const int32_t* cu_seqlens;
  int64_t heads;
  uint8_t limit;                  // bool: attend where q and k differ in fewer bits
  const ExponentialTable* table;  // elastic, else null
  double half_alpha;
  const int32_t* thresholds;  // (heads, 64), (3, heads, 64), or null: the sign
  int rails;                  // 0: whole numbers
  void* out;                  // (total, heads, 64), (total, heads) or (total, 2, heads)
};

constexpr int64_t binary_attention_scratch_bytes(int64_t keys) {
  const int64_t blocks = (keys + 63) / 64;
  return blocks * (1024 + 512 + 1024     // keys, values, planes of them
                   + 4 * 64 + 4 * 32) +  // distances, attended keys
         1024;
}

// One task is AttentionTask's rows of one sequence and one head.
using BinaryAttention = void(const BinaryAttentionParams&, const AttentionTask&, int64_t head,
                             void* scratch);
TAUT_DECLARE_KERNEL(binary_attention_rows, BinaryAttention)

struct BinaryQkAttentionParams {
  BitInput q, k;
  AttentionInput v;      // of the kernel's type, or int8 where v_scale is given
  const float* v_scale;  // one per token, or null
  const int32_t* cu_seqlens;
  int64_t heads;
  float softmax_scale;
  const float* alibi_slopes;  // one per head, or null
  void* out;                  // (total, heads, 64)
};

// Rows of q that are taken together: the most that a tile of attention's products has.
constexpr int64_t kBinaryQkRows = 8;

constexpr int64_t binary_qk_attention_scratch_bytes(int64_t keys) {
  const int64_t blocks = (keys + 63) / 64;
  return blocks * (1024 + 64 * 64 * 8              // keys, values
                   + kBinaryQkRows * 64 * (4 + 4)  // scores, probabilities
                   + 64) +                         // distances
         kBinaryQkRows * 64 * 4 +
         1024;  // sums
}

using BinaryQkAttention = void(const BinaryQkAttentionParams&, const AttentionTask&, int64_t head,
                               void* scratch);
TAUT_DECLARE_KERNEL(binary_qk_attention_f32, BinaryQkAttention)
TAUT_DECLARE_KERNEL(binary_qk_attention_bf16, BinaryQkAttention)
TAUT_DECLARE_KERNEL(binary_qk_attention_f16, BinaryQkAttention)

}  // namespace taut
