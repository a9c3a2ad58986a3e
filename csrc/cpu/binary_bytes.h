// Products with 1-bit weights by products of bytes: bits become codes 0 and 1 in the layout of a
// low-bit weight of 8 bits, rows of x signed bytes. For weights of +-1
//   sum of w x = 2 * (sum of codes times x) - (sum of x).
//
// Within 32 features, a quad of the layout holds features j, j + 8, j + 16 and j + 24: a shift by j
// and a mask make it from 32 packed bits. Rows of x are staged in that order.
#pragma once
#include "cpu/lowbit_gemm_integers.h"
#if defined(TAUT_ISA_amx)
#include "cpu/lowbit_gemm_tiles.h"
#endif

namespace taut {
namespace TAUT_ISA {
namespace {

constexpr int64_t kCodeBytes = kLowbitBlock * kLowbitPanel;  // of a word of 64 channels

// The codes of a panel of `words` words, kCodeBytes for each.
inline void expand_bits(const uint64_t* panel, int64_t words, uint8_t* codes) {
  const Bytes one = Bytes::set(1);
  for (int64_t w = 0; w < words; ++w, panel += kLowbitPanel)
    for (int64_t channel = 0; channel < kLowbitPanel; channel += Vec::kWidth) {
      Bytes halves[2];
      split_words(panel + channel, halves, halves + 1);
      uint8_t* out = codes + w * kCodeBytes + 4 * channel;
      for (const Bytes& half : halves)
        for (int quad = 0; quad < kQuads; ++quad, out += kRowBytes)
          ((half >> quad) & one).store(out);
    }
}

// A word of signs as 64 bytes: +1 where `positive` has a bit, -1 where `negative` has.
inline void stage_signs(uint64_t positive, uint64_t negative, int8_t* out) {
  uint32_t quads[2 * kQuads];
  for (int half = 0; half < 2; ++half)
    for (int quad = 0; quad < kQuads; ++quad) {
      const int shift = quad + half * 32;
      const auto plus = static_cast<uint32_t>(positive >> shift) & 0x01010101u;
      const auto minus = static_cast<uint32_t>(negative >> shift) & 0x01010101u;
      quads[half * kQuads + quad] = plus | minus * 255u;
    }
  std::memcpy(out, quads, sizeof(quads));
}

// So many codes, with zeros behind them up to whole words. Returns their sum.
inline int32_t stage_codes(const int8_t* x, int64_t columns, int8_t* out) {
  int32_t sum = 0;
  for (int64_t c = 0; c < columns; ++c) sum += x[c];
  int64_t c = 0;
  for (; c + kLowbitUnit <= columns; c += kLowbitUnit) order_by_eights(x + c, out + c);
  for (; c % kLowbitBlock || c < columns; c += kLowbitUnit) {
    int8_t last[kLowbitUnit] = {};
    if (c < columns) std::memcpy(last, x + c, static_cast<size_t>(columns - c));
    order_by_eights(last, out + c);
  }
  return sum;
}

// What so many words of x, rows x_stride apart, are multiplied by, and where the sums go: (rows,
// 64).
struct ByteProduct {
  const uint8_t* codes;
  int64_t words;
  const int8_t* x;
  int64_t x_stride;
  int32_t (*sums)[kLowbitPanel];
};

#if defined(__AVX512VNNI__)

template <int Rows>
void sum_rows(const ByteProduct& p) {
  for (int64_t channel = 0; channel < kLowbitPanel; channel += kIntegerVectors * Vec::kWidth) {
    Ints sums[Rows][kIntegerVectors];
    for (auto& row : sums)
      for (Ints& sum : row) sum = Ints::zero();
    sum_units<8>(p.codes, channel, 0, 2 * p.words, p.x, p.x_stride, sums);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kIntegerVectors; ++v)
        store_ints(sums[r][v], p.sums[r] + channel + v * Vec::kWidth);
  }
}

#else

constexpr int64_t kMostQuads = 128;  // whose products a half of a lane holds the sums of

// Sums in halves of lanes of so many quads. A function of its own: among the sums of sum_rows, gcc
// 12 finds no registers for these.
template <int Rows>
__attribute__((noinline)) void sum_pairs(const uint8_t* codes, int64_t quads, const int8_t* x,
                                         int64_t x_stride, Bytes (*sums)[kIntegerVectors]) {
  Bytes pairs[Rows][kIntegerVectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kIntegerVectors; ++v) pairs[r][v] = Bytes::set(0);
  for (int64_t quad = 0; quad < quads; ++quad, codes += kRowBytes, x += 4) {
    Bytes here[kIntegerVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kIntegerVectors; ++v) here[v] = Bytes::load(codes + 4 * v * Vec::kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Bytes value = Bytes::broadcast(x + r * x_stride);
#pragma GCC unroll 8
      for (int v = 0; v < kIntegerVectors; ++v)
        pairs[r][v] = add_flags(pairs[r][v], here[v], value);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kIntegerVectors; ++v) sums[r][v] = pairs[r][v];
}

template <int Rows>
void sum_rows(const ByteProduct& p) {
  const int64_t quads = 2 * kQuads * p.words;
  for (int64_t channel = 0; channel < kLowbitPanel; channel += kIntegerVectors * Vec::kWidth)
    for (int64_t begin = 0; begin < quads; begin += kMostQuads) {
      const int64_t count = quads - begin < kMostQuads ? quads - begin : kMostQuads;
      Bytes pairs[Rows][kIntegerVectors];
      sum_pairs<Rows>(p.codes + begin * kRowBytes + 4 * channel, count, p.x + 4 * begin, p.x_stride,
                      pairs);
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < kIntegerVectors; ++v) {
          int32_t* sum = p.sums[r] + channel + v * Vec::kWidth;
          store_ints(add_pairs(begin ? load_ints(sum) : Ints::zero(), pairs[r][v]), sum);
        }
    }
}

#endif

// The same for 1 to Rows rows.
template <int Rows = kIntegerRows>
inline void sum_rows(const ByteProduct& p, int64_t rows) {
  if (rows >= Rows) return sum_rows<Rows>(p);
  if constexpr (Rows > 1) sum_rows<Rows - 1>(p, rows);
}

#if defined(TAUT_ISA_amx)

// The same for kIntegerBlock rows.
inline void sum_rows_by_tiles(const ByteProduct& p) {
  for (int64_t channel = 0; channel < kLowbitPanel; channel += kIntegerBlock) {
    zero_tiles();
    for (int64_t w = 0; w < p.words; ++w) {
      const int8_t* x = p.x + w * kLowbitBlock;
      multiply_tiles<int32_t>(x, x + kTile * p.x_stride, p.x_stride,
                              p.codes + w * kCodeBytes + 4 * channel);
    }
    store_tiles(p.sums[0] + channel, kLowbitPanel);
  }
}

#endif

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
