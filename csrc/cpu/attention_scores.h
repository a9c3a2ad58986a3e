// What happens to attention scores between the two products: biases by distance, softcap, dropout.
// Scores are kept transposed, [key][lane], a lane being a query, and in units of log2(e).
#pragma once
#include "cpu/attention.h"
#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {
namespace {

constexpr int kLanes = 2 * Vec::kWidth;  // queries of a block
constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
// Hidden keys get this score instead of -inf, which would make NaN of inf - inf; the maximum of a
// row that sees no key is kept far above it, so that 2^(score - maximum) is 0.
constexpr float kHidden = -1e30f;
constexpr float kLowestMaximum = -1e20f;

// bias[x], in units of log2(e), of a query and a key whose distance is `first` + x.
inline void fill_distance_bias(const AttentionParams& p, int64_t sequence, int64_t head,
                               int64_t first, int64_t count, float* bias) {
  const float slope =
      p.alibi_slopes ? p.alibi_slopes[sequence * p.slopes_stride + head] * kLog2e : 0.0f;
  const int64_t limit = p.relative_limit;
  const float* by_offset =
      p.relative_bias ? p.relative_bias + head * (2 * limit + 1) + limit : nullptr;
  for (int64_t x = 0; x < count; ++x) {
    const int64_t distance = first + x;
    const int64_t clamped = distance < -limit ? -limit : distance > limit ? limit : distance;
    float value = -slope * static_cast<float>(distance < 0 ? -distance : distance);
    if (by_offset) value += by_offset[-clamped] * kLog2e;
    const bool hidden = distance > p.window_left || distance < -p.window_right;
    bias[x] = hidden ? kHidden : value;
  }
}

// The keys [begin, end) that queries [first, last] of a sequence may see.
struct KeyRange {
  int64_t begin, end;
};
inline KeyRange visible_keys(const AttentionParams& p, int64_t first, int64_t last, int64_t shift,
                             int64_t keys) {
  const int64_t begin = first + shift - p.window_left;
  const int64_t end = last + shift + p.window_right + 1;
  return {begin < 0 ? 0 : begin, end > keys ? keys : end};
}

// Philox4x32-10 (Salmon et al., 2011) of counter (block, row + lane, head, 0); see dropout_keep in
// reference/attention.py.
inline void random_words(const AttentionParams& p, uint32_t block, uint32_t row, uint32_t head,
                         uint32_t (&words)[4][kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t c0 = block, c1 = row + static_cast<uint32_t>(lane), c2 = head, c3 = 0;
    uint32_t k0 = p.seed[0], k1 = p.seed[1];
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
      const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(p1);
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[0][lane] = c0;
    words[1][lane] = c1;
    words[2][lane] = c2;
    words[3][lane] = c3;
  }
}

// Multiplies factor[key][lane] by 0 or keep_scale for keys [begin, end) of the sequence, where
// factor points at key `begin`, a multiple of 4. `row` is lane 0's row of q.
inline void apply_dropout(const AttentionParams& p, int64_t head, int64_t row, int64_t begin,
                          int64_t end, float* factor) {
  uint32_t words[4][kLanes];
  for (int64_t key = begin; key < end; ++key) {
    if (key % 4 == 0)
      random_words(p, static_cast<uint32_t>(key / 4), static_cast<uint32_t>(row),
                   static_cast<uint32_t>(head), words);
    float* at = factor + (key - begin) * kLanes;
    const uint32_t* word = words[key % 4];
    for (int lane = 0; lane < kLanes; ++lane)
      at[lane] *= word[lane] >= p.dropout_threshold ? p.keep_scale : 0.0f;
  }
}

// log2 of positive normal numbers: exponent + ln(mantissa) / ln(2), the mantissa in
// [sqrt(1/2), sqrt(2)); ln by the series of 2 atanh(f / (2 + f)), error below 1e-9.
inline void log2_lanes(const float* x, int count, float* out) {
  for (int i = 0; i < count; ++i) {
    const int32_t bits = static_cast<int32_t>(as_bits(x[i]));
    const int32_t exponent = (bits - 0x3f3504f3) >> 23;
    const float f = as_float(static_cast<uint32_t>(bits - exponent * (1 << 23))) - 1.0f;
    const float s = f / (2.0f + f), s2 = s * s;
    float series = 0.111111111f;
    series = series * s2 + 0.142857143f;
    series = series * s2 + 0.2f;
    series = series * s2 + 0.333333333f;
    series = series * s2 + 1.0f;
    out[i] = static_cast<float>(exponent) + 2.88539008f * s * series;
  }
}

// Turns products q.k of `keys` keys into scores; maximum is raised to the largest of each lane.
// bias points at the bias of (key 0, lane 0), one less per key, or is null.
template <int kVecs>
inline void finish_scores(const AttentionParams& p, const float* bias, int64_t keys, float* scores,
                          Vec (&maximum)[kVecs]) {
  const Vec scale = Vec::set(p.softmax_scale * kLog2e);
  const Vec to_cap = Vec::set(p.softcap > 0 ? p.softmax_scale / p.softcap : 0.0f);
  const Vec cap = Vec::set(p.softcap * kLog2e);
  for (int64_t key = 0; key < keys; ++key)
    for (int v = 0; v < kVecs; ++v) {
      float* at = scores + key * kLanes + v * Vec::kWidth;
      const Vec dot = Vec::load(at);
      Vec score = p.softcap > 0 ? cap * Tanh::apply(dot * to_cap) : dot * scale;
      if (bias) {  // a hidden key stays hidden whatever the product is, NaN included
        const Vec b = Vec::load(bias - key + v * Vec::kWidth);
        score = select(b < Vec::set(0.5f * kHidden), b, score + b);
      }
      score.store(at);
      maximum[v] = max(maximum[v], score);
    }
}

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
