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
#define TAUT_GROUPS_IN_REGISTERS
#endif
// Products in 16 bits need no masks: 12 sums, 2 vectors of codes, 1 of x, a product. A row alone
// waits for the codes, and reads longer pieces of them at a time.
template <int Bits>
constexpr int kRowsOf = kShortProducts && Bits == 8 ? 6 : kIntegerRows;
template <int Bits, int Rows>
constexpr int kSumVectors = kShortProducts && Bits == 8 && Rows == 1 ? 8 : kIntegerVectors;
static_assert(kLowbitPanel % (kIntegerVectors * Vec::kWidth) == 0, "a panel is whole tiles");

// What a tile reads, from its first row on, and where its sums go: rows of `stride`, of the
// channels of the panel from `channel` on.
struct IntegerTile {
  const uint8_t* panel;
  LowbitRows rows;
  PanelConstants constants;
  int32_t* sums;  // of one group; unused where totals stay in registers
  float* out;     // of all groups; unused where scaled_at_once
  int64_t channel = 0, stride = kLowbitPanel;
};

// The product is one sum times one scale, with nothing to add to it but whole numbers.
inline bool scaled_at_once(const LowbitParams& p, const PanelConstants& constants) {
  return p.groups == 1 && !constants.fraction && !constants.offset;
}

// The unit behind the group that begins at unit `begin`.
inline int64_t group_end(const LowbitParams& p, int64_t begin) {
  const int64_t end = begin + p.group_units, units = p.units();
  return end < units ? end : units;
}

// What zero points take from the sums of a vector of channels, and their scales. kCommonZero: as
// PanelConstants says.
template <bool kCommonZero>
class Scales {
 public:
  Scales(const PanelConstants& constants, int64_t place)
      : scale_(Vec::load(constants.scale + place)), zero_(load_ints(constants.zero + place)) {}
  Vec scale(float x_scale) const { return Vec::set(x_scale) * scale_; }
  Vec centred(Ints sums, int32_t x_sum) const {
    const Ints taken = set_ints(x_sum);
    return to_vec(sums - (kCommonZero ? taken : taken * zero_));
  }

 private:
  Vec scale_;
  Ints zero_;
};

// t.out += a group's share of the product, for so many rows and the tile's columns from `column`
// on. Exact up to the one multiplication: fractions of zero points are halves.
template <bool kCommonZero>
inline void add_group(const LowbitParams& p, const IntegerTile& t, int64_t group, int64_t rows,
                      int64_t column, int64_t columns) {
  const int32_t* x_sums = t.rows.sum + group;
  const float* x_scales = t.rows.scale + (p.x_groups > 1 ? group : 0);
  const int64_t groups = p.groups, x_groups = p.x_groups;
  const float *fraction = t.constants.fraction, *offset = t.constants.offset;
  for (int64_t c = column; c < column + columns; c += Vec::kWidth) {
    const int64_t place = group * kLowbitPanel + t.channel + c;
    const Scales<kCommonZero> scales(t.constants, place);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t x_sum = x_sums[r * groups];
      Vec v = scales.centred(load_ints(t.sums + r * t.stride + c), x_sum);
      if (fraction) v = fnma(Vec::load(fraction + place), Vec::set(static_cast<float>(x_sum)), v);
      if (offset) v = v - Vec::load(offset + place);
      const Vec scale = scales.scale(x_scales[r * x_groups]);
      float* out = t.out + r * t.stride + c;
      (group ? fma(v, scale, Vec::load(out)) : v * scale).store(out);
    }
  }
}

inline void add_group(const LowbitParams& p, const IntegerTile& t, int64_t group, int64_t rows,
                      int64_t column, int64_t columns) {
  t.constants.common_zero ? add_group<true>(p, t, group, rows, column, columns)
                          : add_group<false>(p, t, group, rows, column, columns);
}

// sums += a quad of codes times so many rows of x.
template <int Bits, int Rows, int Vectors>
inline void add_quad(Unit unit, int quad, const int8_t* x, int64_t x_stride,
                     Ints (&sums)[Rows][Vectors]) {
  Bytes codes[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) codes[v] = codes_of<Bits>(unit, quad, v * Vec::kWidth);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const Bytes value = Bytes::broadcast(x + r * x_stride + 4 * quad);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sums[r][v] = dot<Bits>(sums[r][v], codes[v], value);
  }
}

// sums += codes of units [begin, end) times so many rows of x. A turn is no longer than it must be:
// of a whole unit in one block, gcc 12 keeps the sums in memory from turn to turn.
template <int Bits, int Rows, int Vectors>
inline void sum_units(const uint8_t* panel, int64_t channel, int64_t begin, int64_t end,
                      const int8_t* x, int64_t x_stride, Ints (&sums)[Rows][Vectors]) {
  if constexpr (Bits == 3) {
    for (int64_t u = begin; u < end; ++u) {
      const Unit unit = unit_of<Bits>(panel, u, channel);
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad)
        add_quad<Bits>(unit, quad, x + u * kLowbitUnit, x_stride, sums);
    }
  } else {
    constexpr int kSharing = 8 / Bits;  // quads whose codes lie in one row
    const uint8_t* row = unit_of<Bits>(panel, begin, channel).low;
    const int8_t* last = x + end * kLowbitUnit;
#pragma GCC unroll 1
    for (x += begin * kLowbitUnit; x < last; x += 4 * kSharing, row += kRowBytes)
#pragma GCC unroll 8
      for (int quad = 0; quad < kSharing; ++quad)
        add_quad<Bits>({row, nullptr}, quad, x, x_stride, sums);
  }
}

#if defined(TAUT_GROUPS_IN_REGISTERS)
// More than one group: half as many channels where there are many rows, so that totals stay in
// registers beside a group's sums. To the bit what add_group makes of sums in memory.
template <int Bits, int Rows, bool kCommonZero>
void multiply_groups(const LowbitParams& p, const IntegerTile& t) {
  constexpr int kVectors = Rows > 2 ? kIntegerVectors / 2 : kIntegerVectors;
  constexpr int64_t kTileColumns = kVectors * Vec::kWidth;
  const int64_t groups = p.groups, x_groups = p.x_groups;
  for (int64_t channel = 0; channel < kLowbitPanel; channel += kTileColumns) {
    Vec totals[Rows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) totals[r][v] = Vec::set(-0.0f);  // adds nothing to -0
    for (int64_t group = 0, begin = 0; group < groups; ++group, begin += p.group_units) {
      const int64_t end = group_end(p, begin);
      Ints sums[Rows][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = Ints::zero();
      sum_units<Bits>(t.panel, channel, begin, end, t.rows.codes, p.codes_stride(), sums);
      const int32_t* x_sums = t.rows.sum + group;
      const float* x_scales = t.rows.scale + (x_groups > 1 ? group : 0);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const Scales<kCommonZero> scales(t.constants,
                                         group * kLowbitPanel + channel + v * Vec::kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
          totals[r][v] = fma(scales.centred(sums[r][v], x_sums[r * groups]),
                             scales.scale(x_scales[r * x_groups]), totals[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        totals[r][v].store(t.out + r * kLowbitPanel + channel + v * Vec::kWidth);
  }
}
#endif

template <int Bits, int Rows>
void multiply_integers(const LowbitParams& p, const IntegerTile& t) {
#if defined(TAUT_GROUPS_IN_REGISTERS)
  if (p.groups > 1 && !t.constants.fraction && !t.constants.offset)
    return t.constants.common_zero ? multiply_groups<Bits, Rows, true>(p, t)
                                   : multiply_groups<Bits, Rows, false>(p, t);
#endif
  constexpr int kVectors = kSumVectors<Bits, Rows>;
  constexpr int64_t kTileColumns = kVectors * Vec::kWidth;
  for (int64_t channel = 0; channel < kLowbitPanel; channel += kTileColumns)
    for (int64_t group = 0, begin = 0; group < p.groups; ++group, begin += p.group_units) {
      const int64_t end = group_end(p, begin);
      Ints sums[Rows][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = Ints::zero();
      if constexpr (kShortProducts && Bits == 8)
        sum_shorts(t.panel, channel, begin, end, t.rows.codes, p.codes_stride(), p.row_codes(),
                   sums);
      else
        sum_units<Bits>(t.panel, channel, begin, end, t.rows.codes, p.codes_stride(), sums);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          store_ints(sums[r][v], t.sums + r * kLowbitPanel + channel + v * Vec::kWidth);
      if (!scaled_at_once(p, t.constants)) add_group(p, t, group, Rows, channel, kTileColumns);
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
  for (int64_t group = 0, begin = 0; group < p.groups; ++group, begin += p.group_units) {
    const int64_t end = group_end(p, begin);
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
