// How attention multiplies: fp32 by vectors, bf16 by VDPBF16PS, bf16 by AMX.
#pragma once
#include "cpu/attention_pack.h"
#include "cpu/attention_scores.h"

namespace taut {
namespace TAUT_ISA {
namespace {

// The three ways to multiply. Element: how K and Q are kept; kUnit: elements per 32-bit unit;
// kKeyRows and kKeyStep: what the first and the second product round the number of keys up to;
// kExpDegree: of the polynomial of exp2, whose error lies far below that of bf16 probabilities.
//
// The backward pass adds to gradients [row][column], columns a multiple of 16: add_by_keys takes a
// matrix [key][lane / kUnit], rows of keys, add_by_lanes one of [key / kUnit][lane]; both have
// zeros in keys and lanes that do not exist.
struct Floats {
  using Element = float;
  static constexpr int64_t kUnit = 1, kKeyRows = kTileRows, kKeyStep = 1;
  static constexpr bool kPairs = false;
  static constexpr int kExpDegree = 5;

  template <int kVecs>
  static void scores(const Element* k, int64_t units, int64_t head_dim, const float* q,
                     int64_t keys, float* s) {
    product<FloatDot, kVecs, false>(k, units, q, kLanes, keys, head_dim, s, kLanes, nullptr);
  }
  template <class T>
  static void pack_values(const Head<T>& v, int64_t first, int64_t keys, int64_t head_dim,
                          int64_t columns, float*, float* dst) {
    pack_rows(v, first, keys, keys, head_dim, columns, dst);
  }
  template <int kVecs>
  static void accumulate(const float* v, int64_t columns, int64_t head_dim, int64_t begin,
                         const float* probabilities, int64_t keys, const float* keep, float* out) {
    product<FloatDot, kVecs, true>(v + begin * columns, columns, probabilities, kLanes, head_dim,
                                   keys, out, kLanes, keep);
  }
  static void add_by_keys(const float* a, const float* b, int64_t keys, int64_t lanes,
                          int64_t columns, float* c) {
    add_product<FloatDot, false>(a, kLanes, b, keys, lanes, columns, c);
  }
  static void add_by_lanes(const float* a, const float* b, int64_t lanes, int64_t keys,
                           int64_t columns, float*, float* c) {
    add_product<FloatDot, true>(a, kLanes, b, lanes, keys, columns, c);
  }
};

#if defined(TAUT_BF16_DOT)
struct Pairs {
  using Element = bf16;
  static constexpr int64_t kUnit = 2, kKeyRows = kTileRows, kKeyStep = 2;
  static constexpr bool kPairs = true;
  static constexpr int kExpDegree = 4;
  static Vec pair(Vec low, Vec high) { return to_pairs(low, high); }

  template <int kVecs>
  static void scores(const Element* k, int64_t units, int64_t head_dim, const float* q,
                     int64_t keys, float* s) {
    product<PairDot, kVecs, false>(reinterpret_cast<const float*>(k), units, q, kLanes, keys,
                                   head_dim / 2, s, kLanes, nullptr);
  }
  template <class T>
  static void pack_values(const Head<T>& v, int64_t first, int64_t keys, int64_t head_dim,
                          int64_t columns, float*, float* dst) {
    pack_row_pairs(v, first, keys, round_up(keys, 2), head_dim, columns, dst);
  }
  template <int kVecs>
  static void accumulate(const float* v, int64_t columns, int64_t head_dim, int64_t begin,
                         const float* probabilities, int64_t keys, const float* keep, float* out) {
    product<PairDot, kVecs, true>(v + begin / 2 * columns, columns, probabilities, kLanes, head_dim,
                                  keys / 2, out, kLanes, keep);
  }
  static void add_by_keys(const float* a, const float* b, int64_t keys, int64_t lanes,
                          int64_t columns, float* c) {
    add_product<PairDot, false>(a, kLanes / 2, b, keys, (lanes + 1) / 2, columns, c);
  }
  static void add_by_lanes(const float* a, const float* b, int64_t lanes, int64_t keys,
                           int64_t columns, float*, float* c) {
    add_product<PairDot, true>(a, kLanes, b, lanes, keys / 2, columns, c);
  }
};
using Bf16Path = Pairs;
#else
using Bf16Path = Floats;
#endif

#if defined(TAUT_ISA_amx)
// V is kept transposed, [channel][key pair]: AMX reads its first operand by rows.
struct Tiles {
  using Element = bf16;
  static constexpr int64_t kUnit = 2, kKeyRows = 16, kKeyStep = 32;
  static constexpr bool kPairs = true;
  static constexpr int kExpDegree = 4;
  static Vec pair(Vec low, Vec high) { return to_pairs(low, high); }
  static constexpr int64_t kValueStride = kAttentionKeys / 2;

  template <int kVecs>
  static void scores(const Element* k, int64_t units, int64_t, const float* q, int64_t keys,
                     float* s) {
    amx_product<kVecs>(reinterpret_cast<const float*>(k), units, q, kLanes,
                       round_up(keys, kKeyRows), units, s, kLanes, false);
  }
  template <class T>
  static void pack_values(const Head<T>& v, int64_t first, int64_t keys, int64_t head_dim,
                          int64_t columns, float* pairs, float* dst) {
    const int64_t padded = round_up(keys, 32);
    pack_row_pairs(v, first, keys, padded, head_dim, columns, pairs);
    transpose_units(pairs, columns, padded / 2, columns, dst, kValueStride);
  }
  template <int kVecs>
  static void accumulate(const float* v, int64_t columns, int64_t, int64_t begin,
                         const float* probabilities, int64_t keys, const float* keep, float* out) {
    if (keep)
      for (int64_t c = 0; c < columns; ++c)
        for (int i = 0; i < kVecs; ++i) {
          float* at = out + c * kLanes + i * Vec::kWidth;
          (Vec::load(at) * Vec::load(keep + i * Vec::kWidth)).store(at);
        }
    amx_product<kVecs>(v + begin / 2, kValueStride, probabilities, kLanes, columns, keys / 2, out,
                       kLanes, keep != nullptr);
  }
  static void add_by_keys(const float* a, const float* b, int64_t keys, int64_t, int64_t columns,
                          float* c) {
    amx_add_product(a, kLanes / 2, b, round_up(keys, 16), kLanes / 2, columns, c);
  }
  // `rows`: kLanes * kAttentionKeys / 2 units of scratch, for a matrix by rows of lanes.
  static void add_by_lanes(const float* a, const float* b, int64_t, int64_t keys, int64_t columns,
                           float* rows, float* c) {
    transpose_units(a, kLanes, keys / 2, kLanes, rows, kAttentionKeys / 2);
    amx_add_product(rows, kAttentionKeys / 2, b, kLanes, keys / 2, columns, c);
  }
};
using BestBf16Path = Tiles;
#else
using BestBf16Path = Bf16Path;
#endif

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
