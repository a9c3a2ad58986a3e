// The product of floating-point activations and low-bit weights: codes are expanded to the values
// they stand for, in registers for few rows, to memory for many.
//
// A run of input features is summed in registers, scaled, and added to the row's sums. Runs depend
// on the group size and the instruction set only, so a row's sums do not depend on the other rows.
#pragma once
#include "cpu/dense_gemm_vector.h"
#include "cpu/lowbit_codes.h"

namespace taut {
namespace TAUT_ISA {

#if !defined(TAUT_ISA_portable) && !defined(TAUT_ISA_avx2)
#define TAUT_CODE_TABLES
#endif

constexpr int32_t kLaneIndices[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// A panel as the expansion sees it.
struct FloatPanel {
  const uint8_t* codes;
  PanelConstants constants;
  const float* codebook;  // (64, 2^bits); null for integers
  const float* table;     // 16 values of codes, where all channels share them; or null
};

// ---- What codes stand for, before they are scaled: values(codes, channel, out) of a quad.

struct Integers {
  const int32_t* zero;    // of the group's 64 channels
  const float* fraction;  // or null

  void values(Bytes codes, int64_t channel, Vec (&out)[4]) const {
    Vec point = to_vec(load_ints(zero + channel));
    if (fraction) point = point + Vec::load(fraction + channel);
    const Ints members[4] = {member<0>(codes), member<1>(codes), member<2>(codes),
                             member<3>(codes)};
    for (int i = 0; i < 4; ++i) out[i] = to_vec(members[i]) - point;
  }
};

template <int Bits>
struct Codebooks {
  const float* books;  // (64, 2^Bits)

  void values(Bytes codes, int64_t channel, Vec (&out)[4]) const {
    const Ints lane_tables = load_ints(kLaneIndices) * set_ints(1 << Bits);
    const Ints members[4] = {member<0>(codes), member<1>(codes), member<2>(codes),
                             member<3>(codes)};
    for (int i = 0; i < 4; ++i)
      out[i] = gather(books + (channel << Bits), lane_tables + members[i]);
  }
};

#if defined(TAUT_CODE_TABLES)
struct SharedTable {
  Table table;

  template <class Row, int Rows>
  void values(Bytes codes, int64_t, Row (&out)[Rows]) const {
    table.look_up(codes, out);
  }
};
inline void values_of(const SharedTable& source, Bytes codes, int64_t channel, Pairs (&out)[2]) {
  source.values(codes, channel, out);
}
#endif

// Rows as a packed weight holds them: fp32 (k, channel), bf16 (pair of k, channel, member).
template <class Source>
inline void values_of(const Source& source, Bytes codes, int64_t channel, Vec (&out)[4]) {
  source.values(codes, channel, out);
}
template <class Source>
inline void values_of(const Source& source, Bytes codes, int64_t channel, Pairs (&out)[2]) {
  Vec values[4];
  source.values(codes, channel, values);
  for (int i = 0; i < 2; ++i) out[i] = pairs_of(values[2 * i], values[2 * i + 1]);
}

// Calls body(source) with what the codes of unit `index` and the rest of its group stand for.
template <int Bits, class Body>
inline void with_source(const LowbitParams& p, const FloatPanel& panel, int64_t index,
                        const Body& body) {
#if defined(TAUT_CODE_TABLES)
  if constexpr (Bits <= 4)
    if (panel.table) return body(SharedTable{Table::load(panel.table)});
#endif
  if (panel.codebook) return body(Codebooks<Bits>{panel.codebook});
  const int64_t group = index / p.group_units * kLowbitPanel;
  const float* fraction = panel.constants.fraction;
  body(Integers{panel.constants.zero + group, fraction ? fraction + group : nullptr});
}

// ---- The product

template <class T>
using Row = std::conditional_t<sizeof(T) == 4, Vec, Pairs>;

// The values of units [begin, end) to `out`.
template <int Bits, class T, class Source>
inline void expand_units(const uint8_t* codes, const Source& source, int64_t begin, int64_t end,
                         T* out) {
  for (int64_t u = begin; u < end; ++u, out += kLowbitUnit * kLowbitPanel) {
    const Unit unit = unit_of<Bits>(codes, u, 0);
    for (int64_t channel = 0; channel < kLowbitPanel; channel += Vec::kWidth)
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad) {
        constexpr int kRows = 4 / kStep<T>;
        Row<T> rows[kRows];
        values_of(source, codes_of<Bits>(unit, quad, channel), channel, rows);
        T* place = out + (4 * quad * kLowbitPanel + channel * kStep<T>);
        for (int i = 0; i < kRows; ++i) rows[i].store(place + i * kLowbitPanel * kStep<T>);
      }
  }
}

#if defined(__AVX512BF16__)
// sums (Rows, kLowbitPanel) += scale * (Rows rows of x times units [begin, end)), in the order of
// multiply_tile.
template <int Bits, int Rows, class Source>
void multiply_in_registers(const uint8_t* codes, const Source& source, const bf16* x,
                           int64_t x_stride, int64_t in_features, int64_t begin, int64_t end,
                           const float* scale, float* sums) {
  Vec acc[Rows][kTileVectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) acc[r][v] = Vec::zero();
  for (int64_t u = begin; u < end; ++u) {
    const Unit unit = unit_of<Bits>(codes, u, 0);
    const bf16* row = x + u * kLowbitUnit;
    int64_t stride = x_stride;
    bf16 last[Rows][kLowbitUnit] = {};
    if (const int64_t left = in_features - u * kLowbitUnit; left < kLowbitUnit) {
      for (int r = 0; r < Rows; ++r)
        std::memcpy(last[r], row + r * stride, static_cast<size_t>(left) * sizeof(bf16));
      row = last[0];
      stride = kLowbitUnit;
    }
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; ++quad)
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) {
        Pairs pairs[2];
        const int64_t channel = v * Vec::kWidth;
        values_of(source, codes_of<Bits>(unit, quad, channel), channel, pairs);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i)
            acc[r][v] = dot(Pairs::set(row + r * stride + 4 * quad + 2 * i), pairs[i], acc[r][v]);
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t c = v * Vec::kWidth;
      float* place = sums + r * kLowbitPanel + c;
      fma(acc[r][v], Vec::load(scale + c), Vec::load(place)).store(place);
    }
}

// 4 x 4 sums leave registers for the expansion, which for two such tiles costs less anew than by
// way of memory.
constexpr int64_t kRegisterTile = 4, kRegisterRows = 2 * kRegisterTile;
#endif

// Units per run, where groups allow it. A bf16 product adds pairs in one instruction and sums a
// whole row of x at once; others keep the values of a run in L1.
template <class T>
constexpr int64_t kRunUnits = sizeof(T) == 2 && !kWidened<T> ? INT64_MAX : 8 / sizeof(T);

// sums (rows, kLowbitPanel) = rows of x times a panel; `values` holds a run.
template <int Bits, class T>
void multiply_floats(const LowbitParams& p, const FloatPanel& panel, const T* x, int64_t x_stride,
                     int64_t rows, T* values, float* sums) {
  std::memset(sums, 0, static_cast<size_t>(rows * kLowbitPanel) * sizeof(float));
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t run = p.group_units < kRunUnits<T> ? p.group_units : kRunUnits<T>;
  const int64_t units = p.units();
  for (int64_t begin = 0; begin < units; begin += run) {
    const int64_t end = units - begin > run ? begin + run : units;
    const float* scale = panel.constants.scale + begin / p.group_units * kLowbitPanel;
    const int64_t k = begin * kLowbitUnit, left = p.in_features - k;
    const int64_t depth = left < run * kLowbitUnit ? left : run * kLowbitUnit;
    with_source<Bits>(p, panel, begin, [&](const auto& source) {
#if defined(__AVX512BF16__)
      if constexpr (sizeof(T) == 2)
        if (rows <= kRegisterRows) {
          for (int64_t first = 0; first < rows; first += kRegisterTile) {
            with_rows(rows - first < kRegisterTile ? rows - first : kRegisterTile, [&](auto count) {
              multiply_in_registers<Bits, decltype(count)::value>(
                  panel.codes, source, x + first * x_stride, x_stride, p.in_features, begin, end,
                  scale, sums + first * kLowbitPanel);
            });
          }
          return;
        }
#endif
      expand_units<Bits>(panel.codes, source, begin, end, values);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
        multiply_rows(last - first, x + first * x_stride + k, x_stride, values, depth, scale,
                      sums + first * kLowbitPanel);
      }
    });
  }
}

// The tables of a panel's channels, one behind another; channels that do not exist get the first.
inline void prepare_codebook(const LowbitParams& p, int64_t panel, float* out) {
  const int64_t size = int64_t{1} << p.bits, first = panel * kLowbitPanel;
  for (int64_t n = 0; n < kLowbitPanel; ++n) {
    const bool own = p.codebook_per_channel && first + n < p.out_features;
    std::memcpy(out + n * size, p.codebook + (own ? (first + n) * size : 0),
                static_cast<size_t>(size) * sizeof(float));
  }
}

// Fills `table` with the values of all codes where the channels share them; null where they do not.
inline const float* prepare_table(const LowbitParams& p, float (&table)[16]) {
  if (p.bits > 4 || p.zero_point || p.codebook_per_channel) return nullptr;
  const int size = 1 << p.bits;
  for (int i = 0; i < 16; ++i)
    table[i] = p.codebook ? p.codebook[i % size] : static_cast<float>(i % size - size / 2);
  return table;
}

}  // namespace TAUT_ISA
}  // namespace taut
