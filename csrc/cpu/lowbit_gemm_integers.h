// The integer product of low-bit linear layers by vector instructions, and what turns sums into
// fp32. A tile is kIntegerRows rows x kIntegerVectors vectors of channels, summed in registers.
#pragma once
#include "cpu/lowbit_codes.h"
#if defined(TAUT_ISA_avx2)
#include "cpu/lowbit_shorts.h"
#endif

namespace taut {
namespace TAUT_ISA {

// AVX-512: 24 sums, 4 vectors of codes, 1 of x, masks. The others have 16 registers.
#if defined(TAUT_ISA_portable)
constexpr int kIntegerRows = 2, kIntegerVectors = 2;
constexpr bool kShortProducts = false;
#elif defined(TAUT_ISA_avx2)
constexpr int kIntegerRows = 4, kIntegerVectors = 2;
constexpr bool kShortProducts = true;  // 8-bit codes go by lowbit_shorts.h
#else
constexpr int kIntegerRows = 6, kIntegerVectors = 4;
constexpr bool kShortProducts = false;
#endif
// Products in 16 bits need no masks: 12 sums, 2 vectors of codes, 1 of x, a product. A row alone
// waits for the codes, and reads longer pieces of them at a time.
template <int Bits>
constexpr int kRowsOf = kShortProducts && Bits == 8 ? 6 : kIntegerRows;
template <int Bits, int Rows>
constexpr int kSumVectors = kShortProducts && Bits == 8 && Rows == 1 ? 8 : kIntegerVectors;
static_assert(kLowbitPanel % (kIntegerVectors * Vec::kWidth) == 0, "a panel is whole tiles");

// What a tile reads, from its first row on, and where its sums go.
struct IntegerTile {
  const uint8_t* panel;
  LowbitRows rows;
  PanelConstants constants;
  float* out;  // (rows, kLowbitPanel)
};

// What sums start from: the zero points' share, -(whole part of the zero point) * (sum of x).
inline Ints first_sums(const LowbitParams& p, const IntegerTile& t, int64_t group, int64_t row,
                       int64_t channel) {
  const int32_t x_sum = -t.rows.sum[row * p.groups + group];
  if (!p.zero_point) return set_ints(x_sum * (1 << (p.bits - 1)));
  return set_ints(x_sum) * load_ints(t.constants.zero + group * kLowbitPanel + channel);
}

// t.out += the group's share of the product: exact up to the one multiplication.
inline void add_group(const LowbitParams& p, const IntegerTile& t, int64_t group, int64_t row,
                      int64_t channel, Ints sums) {
  const int64_t place = group * kLowbitPanel + channel;
  const float x_scale = t.rows.scale[row * p.x_groups + (p.x_groups > 1 ? group : 0)];
  Vec v = to_vec(sums);
  // Fractions are halves: the products are exact.
  if (t.constants.fraction) {
    const auto x_sum = static_cast<float>(t.rows.sum[row * p.groups + group]);
    v = fnma(Vec::load(t.constants.fraction + place), Vec::set(x_sum), v);
  }
  if (t.constants.offset) v = v - Vec::load(t.constants.offset + place);
  const Vec scale = Vec::set(x_scale) * Vec::load(t.constants.scale + place);
  float* out = t.out + row * kLowbitPanel + channel;
  (group ? fma(v, scale, Vec::load(out)) : v * scale).store(out);
}

// sums += codes of units [begin, end) times so many rows of x.
template <int Bits, int Rows>
inline void sum_units(const uint8_t* panel, int64_t channel, int64_t begin, int64_t end,
                      const int8_t* x, int64_t x_stride, Ints (&sums)[Rows][kIntegerVectors]) {
  for (int64_t u = begin; u < end; ++u) {
    const Unit unit = unit_of<Bits>(panel, u, channel);
    const int8_t* x_unit = x + u * kLowbitUnit;
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; ++quad) {
      Bytes codes[kIntegerVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kIntegerVectors; ++v)
        codes[v] = codes_of<Bits>(unit, quad, v * Vec::kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Bytes value = Bytes::broadcast(x_unit + r * x_stride + 4 * quad);
#pragma GCC unroll 8
        for (int v = 0; v < kIntegerVectors; ++v)
          sums[r][v] = dot<Bits>(sums[r][v], codes[v], value);
      }
    }
  }
}

template <int Bits, int Rows>
void multiply_integers(const LowbitParams& p, const IntegerTile& t) {
  constexpr int kVectors = kSumVectors<Bits, Rows>;
  constexpr int64_t kTileColumns = kVectors * Vec::kWidth;
  const int64_t units = p.units();
  for (int64_t channel = 0; channel < kLowbitPanel; channel += kTileColumns)
    for (int64_t group = 0, begin = 0; group < p.groups; ++group, begin += p.group_units) {
      const int64_t end = begin + p.group_units < units ? begin + p.group_units : units;
      Ints sums[Rows][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          sums[r][v] = first_sums(p, t, group, r, channel + v * Vec::kWidth);
      if constexpr (kShortProducts && Bits == 8)
        sum_shorts(t.panel, channel, begin, end, t.rows.codes, p.codes_stride(), p.row_codes(),
                   sums);
      else
        sum_units<Bits>(t.panel, channel, begin, end, t.rows.codes, p.codes_stride(), sums);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          add_group(p, t, group, r, channel + v * Vec::kWidth, sums[r][v]);
    }
}

// The same for 1 to kRowsOf rows.
template <int Bits, int Rows = kRowsOf<Bits>>
inline void multiply_integers(const LowbitParams& p, const IntegerTile& t, int64_t rows) {
  if (rows >= Rows) return multiply_integers<Bits, Rows>(p, t);
  if constexpr (Rows > 1) multiply_integers<Bits, Rows - 1>(p, t, rows);
}

// A panel of narrow codes as one of 8 bits.
template <int Bits>
void expand_panel(const LowbitParams& p, const uint8_t* panel, uint8_t* out) {
  for (int64_t u = 0; u < 2 * p.blocks(); ++u) {
    const Unit unit = unit_of<Bits>(panel, u, 0);
    for (int64_t channel = 0; channel < kLowbitPanel; channel += Vec::kWidth)
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad)
        codes_of<Bits>(unit, quad, channel)
            .store(out + (u * kQuads + quad) * kRowBytes + 4 * channel);
  }
}

// Fills in what a zero point of x takes away from every row's sums.
template <int Bits>
void prepare_offsets(const LowbitParams& p, const uint8_t* panel, const int8_t* ones,
                     const PanelConstants& c) {
  constexpr int64_t kTileColumns = kIntegerVectors * Vec::kWidth;
  const int64_t units = p.units();
  for (int64_t group = 0, begin = 0; group < p.groups; ++group, begin += p.group_units) {
    const int64_t end = begin + p.group_units < units ? begin + p.group_units : units;
    const int64_t last = end * kLowbitUnit < p.in_features ? end * kLowbitUnit : p.in_features;
    const auto features = static_cast<double>(last - begin * kLowbitUnit);
    for (int64_t channel = 0; channel < kLowbitPanel; channel += kTileColumns) {
      Ints sums[1][kIntegerVectors];
      for (Ints& sum : sums[0]) sum = Ints::zero();
      sum_units<Bits>(panel, channel, begin, end, ones, 0, sums);
      for (int64_t v = 0; v < kIntegerVectors; ++v) {
        int32_t lanes[Vec::kWidth];
        store_ints(sums[0][v], lanes);
        for (int64_t i = 0; i < Vec::kWidth; ++i) {
          const int64_t place = group * kLowbitPanel + channel + v * Vec::kWidth + i;
          const double zero = static_cast<double>(c.zero[place]) +
                              (c.fraction ? static_cast<double>(c.fraction[place]) : 0.0);
          c.offset[place] = p.x_zero_point * static_cast<float>(lanes[i] - features * zero);
        }
      }
    }
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
