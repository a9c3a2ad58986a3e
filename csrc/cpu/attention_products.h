// The matrix products of attention: C[m][lane] = sum over k of A[m][k] * B[k][lane].
//
// B and C are scratch whose rows are vectors of lanes; A is read one broadcast unit at a time. A
// unit of k is one fp32 element, or two bf16 elements side by side (for VDPBF16PS and AMX).
#pragma once
#include "cpu/isa/tiles.h"
#include "cpu/isa/transpose.h"

#if !defined(TAUT_ISA_portable) && !defined(TAUT_ISA_avx2) && !defined(TAUT_ISA_avx512)
#define TAUT_BF16_DOT
#endif

namespace taut {
namespace TAUT_ISA {
namespace {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct FloatDot {
  static Vec step(const float* a, Vec b, Vec sum) { return fma(Vec::set(*a), b, sum); }
};

#if defined(TAUT_BF16_DOT)
struct PairDot {
  static Vec step(const float* a, Vec b, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_set1_ps(*a), (__m512bh)b.v)};
  }
};

// Units {bf16(low), bf16(high)} of every lane.
inline Vec to_pairs(Vec low, Vec high) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both))};
}
#endif

// Rows of C per register tile: with two vectors of lanes, 16 sums of 32 registers, or 8 of 16.
constexpr int kTileRows = Vec::kWidth == 16 ? 8 : 4;

// kColumns: A is stored by columns, unit (m, k) at a[k * lda + m]; else at a[m * lda + k].
// keep: null, or what the old C is multiplied by, per lane, before the product is added.
template <class Dot, int kVecs, bool kColumns>
inline void product_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t k,
                         float* c, int64_t ldc, const float* keep) {
  Vec sum[kTileRows][kVecs];
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kVecs; ++v) {
      const int64_t lane = v * Vec::kWidth;
      sum[r][v] = keep ? Vec::load(c + r * ldc + lane) * Vec::load(keep + lane) : Vec::zero();
    }
  for (int64_t i = 0; i < k; ++i) {
    Vec row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = Vec::load(b + i * ldb + v * Vec::kWidth);
    for (int r = 0; r < kTileRows; ++r)
      for (int v = 0; v < kVecs; ++v)
        sum[r][v] = Dot::step(kColumns ? a + i * lda + r : a + r * lda + i, row[v], sum[r][v]);
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kVecs; ++v) sum[r][v].store(c + r * ldc + v * Vec::kWidth);
}

// m is rounded up to kTileRows.
template <class Dot, int kVecs, bool kColumns>
inline void product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t k,
                    float* c, int64_t ldc, const float* keep) {
  for (int64_t r = 0; r < m; r += kTileRows)
    product_tile<Dot, kVecs, kColumns>(a + (kColumns ? r : r * lda), lda, b, ldb, k, c + r * ldc,
                                       ldc, keep);
}

// c[m][column] += A . b over all columns, a multiple of 16.
template <class Dot, bool kColumns>
inline void add_product(const float* a, int64_t lda, const float* b, int64_t m, int64_t k,
                        int64_t columns, float* c) {
  constexpr int64_t kTwo = 2 * Vec::kWidth;
  float ones[kTwo];
  for (float& one : ones) one = 1.0f;
  int64_t at = 0;
  for (; at + kTwo <= columns; at += kTwo)
    product<Dot, 2, kColumns>(a, lda, b + at, columns, m, k, c + at, columns, ones);
  if (at < columns) product<Dot, 1, kColumns>(a, lda, b + at, columns, m, k, c + at, columns, ones);
}

// dst[c][r] = src[r][c] in 32-bit units; rows and columns are multiples of kWidth.
inline void transpose_units(const float* src, int64_t src_stride, int64_t rows, int64_t columns,
                            float* dst, int64_t dst_stride) {
  for (int64_t r = 0; r < rows; r += Vec::kWidth)
    for (int64_t c = 0; c < columns; c += Vec::kWidth) {
      Vec square[Vec::kWidth];
      for (int i = 0; i < Vec::kWidth; ++i) square[i] = Vec::load(src + (r + i) * src_stride + c);
      transpose(square);
      for (int i = 0; i < Vec::kWidth; ++i) square[i].store(dst + (c + i) * dst_stride + r);
    }
}

#if defined(TAUT_ISA_amx)

// 16 * kHigh rows of C by 16 * kWide lanes. Tiles 0..3 hold C, 4 and 5 A, 6 and 7 B.
template <int kHigh, int kWide>
inline void amx_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t k, float* c,
                     int64_t ldc, bool accumulate) {
  const int64_t a_bytes = 4 * lda, b_bytes = 4 * ldb, c_bytes = 4 * ldc;
  float* c_below = c + 16 * ldc;
  if (accumulate) {
    TILE_LOAD(0, c, c_bytes);
    if constexpr (kWide == 2) TILE_LOAD(1, c + 16, c_bytes);
    if constexpr (kHigh == 2) TILE_LOAD(2, c_below, c_bytes);
    if constexpr (kHigh == 2 && kWide == 2) TILE_LOAD(3, c_below + 16, c_bytes);
  } else {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
  }
  for (int64_t i = 0; i < k; i += 16) {
    TILE_LOAD(4, a + i, a_bytes);
    TILE_LOAD(6, b + i * ldb, b_bytes);
    TILE_DOT_BF16(0, 4, 6);
    if constexpr (kWide == 2) {
      TILE_LOAD(7, b + i * ldb + 16, b_bytes);
      TILE_DOT_BF16(1, 4, 7);
    }
    if constexpr (kHigh == 2) {
      TILE_LOAD(5, a + 16 * lda + i, a_bytes);
      TILE_DOT_BF16(2, 5, 6);
      if constexpr (kWide == 2) TILE_DOT_BF16(3, 5, 7);
    }
  }
  TILE_STORE(0, c, c_bytes);
  if constexpr (kWide == 2) TILE_STORE(1, c + 16, c_bytes);
  if constexpr (kHigh == 2) TILE_STORE(2, c_below, c_bytes);
  if constexpr (kHigh == 2 && kWide == 2) TILE_STORE(3, c_below + 16, c_bytes);
}

// A by rows; m and k are multiples of 16.
template <int kVecs>
inline void amx_product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                        int64_t k, float* c, int64_t ldc, bool accumulate) {
  int64_t r = 0;
  for (; r + 32 <= m; r += 32)
    amx_tile<2, kVecs>(a + r * lda, lda, b, ldb, k, c + r * ldc, ldc, accumulate);
  if (r < m) amx_tile<1, kVecs>(a + r * lda, lda, b, ldb, k, c + r * ldc, ldc, accumulate);
}

// c[m][column] += A . b over all columns; all three are multiples of 16.
inline void amx_add_product(const float* a, int64_t lda, const float* b, int64_t m, int64_t k,
                            int64_t columns, float* c) {
  int64_t at = 0;
  for (; at + 32 <= columns; at += 32)
    amx_product<2>(a, lda, b + at, columns, m, k, c + at, columns, true);
  if (at < columns) amx_product<1>(a, lda, b + at, columns, m, k, c + at, columns, true);
}

#endif

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
