// Attention with signs for q and k only: one task is some queries of one sequence and one head.
//
// Scores come from counts of bits, whole rows of them; the softmax and the product with V are those
// of floats, with bf16 pairs where the machine multiplies them.
#include "cpu/attention_pack.h"
#include "cpu/attention_scores.h"
#include "cpu/binary_attention.h"
#include "cpu/binary_keys.h"
#include "cpu/isa/columns.h"

namespace taut {
namespace TAUT_ISA {
namespace {

constexpr int64_t kChannels = 64;

template <class T>
struct FloatValues {
  using Probability = float;
  static constexpr int64_t kUnit = 1;
  using Dot = FloatDot;
  static void pack(const Head<T>& v, int64_t keys, float* dst) {
    pack_rows(v, 0, keys, keys, kChannels, kChannels, dst);
  }
};
#if defined(TAUT_BF16_DOT)
struct PairValues {
  using Probability = bf16;
  static constexpr int64_t kUnit = 2;
  using Dot = PairDot;
  static void pack(const Head<bf16>& v, int64_t keys, float* dst) {
    pack_row_pairs(v, 0, keys, round_up(keys, 2), kChannels, kChannels, dst);
  }
};
using Bf16Values = PairValues;
#else
using Bf16Values = FloatValues<bf16>;
#endif

// 16 unsigned bytes or fewer as floats.
inline Vec load_bytes(const uint8_t* p) {
#if defined(TAUT_ISA_portable)
  Vec v;
  for (int i = 0; i < Vec::kWidth; ++i) v.lane[i] = p[i];
  return v;
#elif defined(TAUT_ISA_avx2)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))};
#else
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
#endif
}

// The int8 values of a head as T, which holds them exactly.
template <class T>
Head<T> convert_values(const AttentionInput& v, int64_t head, int64_t token, int64_t keys, T* to) {
  const int8_t* from =
      static_cast<const int8_t*>(v.data) + token * v.token_stride + head * v.head_stride;
  for (int64_t key = 0; key < keys; ++key)
    for (int64_t c = 0; c < kChannels; ++c)
      from_float(static_cast<float>(from[key * v.token_stride + c]), to + key * kChannels + c);
  return Head<T>({to, nullptr, kChannels, 0}, 0, 0, kChannels);
}

template <class T, class Values>
void attend(const BinaryQkAttentionParams& p, const AttentionTask& task, int64_t head,
            void* scratch) {
  using Probability = typename Values::Probability;
  const int64_t token = p.cu_seqlens[task.sequence];
  const int64_t keys = p.cu_seqlens[task.sequence + 1] - token;
  const int64_t padded = round_up(keys, kWord);
  Arena arena(scratch);
  uint8_t* key_blocks = arena.take<uint8_t>(padded / kWord * 1024);
  float* values = arena.take<float>(padded / Values::kUnit * kChannels);
  float* scores = arena.take<float>(padded);
  Probability* probabilities = arena.take<Probability>(kBinaryQkRows * padded);
  uint8_t* distance = arena.take<uint8_t>(padded);
  float* sums = arena.take<float>(kBinaryQkRows * kChannels);

  prepare_all_keys(p.k, token, head, keys, key_blocks);
  Values::pack(p.v_scale ? convert_values(p.v, head, token, keys, arena.take<T>(keys * kChannels))
                         : Head<T>(p.v, head, token, kChannels),
               keys, values);
  const Vec scale = Vec::set(-2.0f * p.softmax_scale * kLog2e);
  const float slope = p.alibi_slopes ? p.alibi_slopes[head] * kLog2e : 0.0f;
  float lanes[Vec::kWidth];
  for (int i = 0; i < Vec::kWidth; ++i) lanes[i] = static_cast<float>(i);
  const Vec lane = Vec::load(lanes);

  for (int64_t first = 0; first < task.rows; first += kTileRows) {
    const int64_t rows = task.rows - first < kTileRows ? task.rows - first : kTileRows;
    Vec inverse[kTileRows];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t place = task.first_row + first + r;
      Query query;
      make_query(*p.q.at(token + place, head), &query);
      uint8_t least[1];
      all_distances<1>(&query, key_blocks, keys, distance, padded, least);
      // Scores in units of log2(e), relative to the row's largest product: exact where it matters.
      const Vec nearest = Vec::set(static_cast<float>(least[0]));
      Vec largest = Vec::set(kHidden);
      for_columns(keys, [&](int64_t key, int n) {
        Vec score = (load_bytes(distance + key) - nearest) * scale;
        if (p.alibi_slopes) {
          const Vec offset = lane + Vec::set(static_cast<float>(key - place));
          score = fnma(Vec::set(slope), abs(offset), score);
        }
        score.store(scores + key);
        if (n < Vec::kWidth) {
          for (int i = n; i < Vec::kWidth; ++i) scores[key + i] = kHidden;
          score = Vec::load(scores + key);
        }
        largest = max(largest, score);
      });
      const Vec maximum = Vec::set(reduce_max(largest));
      Probability* to = probabilities + r * padded;
      Vec sum = Vec::zero();
      for_columns(keys, [&](int64_t key, int n) {
        const Vec e = exp2(Vec::load(scores + key) - maximum);
        sum = sum + e;
        (p.v_scale ? e * load(p.v_scale + token + key, n) : e).store(to + key);
      });
      inverse[r] = Vec::set(1.0f / reduce_add(sum));
    }
    const int64_t steps = (keys + Values::kUnit - 1) / Values::kUnit;
    for (int64_t c = 0; c < kChannels; c += 2 * Vec::kWidth)
      product<typename Values::Dot, 2, false>(reinterpret_cast<const float*>(probabilities),
                                              padded / Values::kUnit, values + c, kChannels,
                                              kTileRows, steps, sums + c, kChannels, nullptr);
    for (int64_t r = 0; r < rows; ++r) {
      T* out = static_cast<T*>(p.out) +
               ((token + task.first_row + first + r) * p.heads + head) * kChannels;
      for (int64_t c = 0; c < kChannels; c += Vec::kWidth)
        (Vec::load(sums + r * kChannels + c) * inverse[r]).store(out + c);
    }
  }
}

}  // namespace

void binary_qk_attention_f32(const BinaryQkAttentionParams& p, const AttentionTask& task,
                             int64_t head, void* scratch) {
  attend<float, FloatValues<float>>(p, task, head, scratch);
}
void binary_qk_attention_bf16(const BinaryQkAttentionParams& p, const AttentionTask& task,
                              int64_t head, void* scratch) {
  attend<bf16, Bf16Values>(p, task, head, scratch);
}
void binary_qk_attention_f16(const BinaryQkAttentionParams& p, const AttentionTask& task,
                             int64_t head, void* scratch) {
  attend<f16, FloatValues<f16>>(p, task, head, scratch);
}

}  // namespace TAUT_ISA
}  // namespace taut
