// The product of floating-point activations and low-bit weights: codes are expanded to values, some
// 64 input features x 64 channels at a time, which stay in L1 while the rows pass by.
//
// The products of such a chunk are summed in registers, scaled, and added to the row's sums,
// whatever the number of rows; so their order depends on K and the group size only.
#pragma once
#include "cpu/dense_gemm_vector.h"
#include "cpu/lowbit_codes.h"

namespace taut {
namespace TAUT_ISA {

#if !defined(TAUT_ISA_portable) && !defined(TAUT_ISA_avx2)
#define TAUT_CODE_TABLES
#endif

// Units per chunk, where groups allow it: 16 KiB of values.
template <class T>
constexpr int64_t kChunkUnits = 8 / sizeof(T);

constexpr int32_t kLaneIndices[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Values lie as in a packed weight: fp32 (k, channel), bf16 (pair of k, channel, member).
template <class T>
inline T* quad_of(T* values, int quad, int64_t channel) {
  return values + 4 * quad * kLowbitPanel + channel * kStep<T>;
}
inline void put_quad(const Vec (&values)[4], float* out) {
  for (int i = 0; i < 4; ++i) values[i].store(out + i * kLowbitPanel);
}
inline void put_quad(const Vec (&values)[4], bf16* out) {
  for (int i = 0; i < 2; ++i)
    store_pairs(values[2 * i], values[2 * i + 1], out + i * 2 * kLowbitPanel);
}

// A panel as the expansion sees it.
struct FloatPanel {
  const uint8_t* codes;
  PanelConstants constants;
  const float* codebook;  // (64, 2^bits); null for integers
  const float* table;     // 16 values of codes, where all channels share them; or null
};

// The values of unit `index`, before they are scaled.
template <int Bits, class T>
inline void expand_unit(const LowbitParams& p, const FloatPanel& panel, int64_t index, T* out) {
  const Unit unit = unit_of<Bits>(panel.codes, index, 0);
#if defined(TAUT_CODE_TABLES)
  if (Bits <= 4 && panel.table) {
    const Table table = Table::load(panel.table);
    for (int64_t channel = 0; channel < kLowbitPanel; channel += Vec::kWidth)
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad)
        table.store(codes_of<Bits>(unit, quad, channel), quad_of(out, quad, channel),
                    kStep<T> * kLowbitPanel);
    return;
  }
#endif
  const Ints lane_tables = load_ints(kLaneIndices) * set_ints(1 << Bits);
  for (int64_t channel = 0; channel < kLowbitPanel; channel += Vec::kWidth) {
    const int64_t place = index / p.group_units * kLowbitPanel + channel;
    Vec zero = to_vec(load_ints(panel.constants.zero + place));
    if (panel.constants.fraction) zero = zero + Vec::load(panel.constants.fraction + place);
    const float* book = panel.codebook ? panel.codebook + (channel << Bits) : nullptr;
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; ++quad) {
      const Bytes codes = codes_of<Bits>(unit, quad, channel);
      const Ints members[4] = {member<0>(codes), member<1>(codes), member<2>(codes),
                               member<3>(codes)};
      Vec values[4];
      for (int i = 0; i < 4; ++i)
        values[i] = book ? gather(book, lane_tables + members[i]) : to_vec(members[i]) - zero;
      put_quad(values, quad_of(out, quad, channel));
    }
  }
}

// sums (rows, kLowbitPanel) = rows of x times a panel; `values` holds a chunk.
template <int Bits, class T>
void multiply_floats(const LowbitParams& p, const FloatPanel& panel, const T* x, int64_t x_stride,
                     int64_t rows, T* values, float* sums) {
  std::memset(sums, 0, static_cast<size_t>(rows * kLowbitPanel) * sizeof(float));
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t chunk = p.group_units < kChunkUnits<T> ? p.group_units : kChunkUnits<T>;
  const int64_t units = p.units();
  for (int64_t begin = 0; begin < units; begin += chunk) {
    const int64_t end = begin + chunk < units ? begin + chunk : units;
    for (int64_t u = begin; u < end; ++u)
      expand_unit<Bits>(p, panel, u, values + (u - begin) * kLowbitUnit * kLowbitPanel);
    const int64_t k = begin * kLowbitUnit, left = p.in_features - k;
    const int64_t depth = left < chunk * kLowbitUnit ? left : chunk * kLowbitUnit;
    const float* scale = panel.constants.scale + begin / p.group_units * kLowbitPanel;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      multiply_rows(last - first, x + first * x_stride + k, x_stride, values, depth, scale,
                    sums + first * kLowbitPanel);
    }
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
