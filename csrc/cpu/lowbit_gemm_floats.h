// The product of floating-point activations and low-bit weights: codes are expanded to values, 64
// input features x 64 channels at a time, which stay in L1 while the rows pass by.
//
// Every block's products are summed in registers and added to the row's sums, whatever the number
// of rows, so the order depends on K only.
#pragma once
#include "cpu/dense_gemm_vector.h"
#include "cpu/lowbit_codes.h"

namespace taut {
namespace TAUT_ISA {

constexpr int32_t kLaneIndices[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Value of input feature k of a block: fp32 (k, channel), bf16 (pair of k, channel, member).
inline void put_quad(const Vec (&values)[4], int quad, int64_t channel, float* out) {
  for (int i = 0; i < 4; ++i) values[i].store(out + (4 * quad + i) * kLowbitPanel + channel);
}
inline void put_quad(const Vec (&values)[4], int quad, int64_t channel, bf16* out) {
  for (int i = 0; i < 2; ++i)
    store_pairs(values[2 * i], values[2 * i + 1],
                out + ((2 * quad + i) * kLowbitPanel + channel) * 2);
}

// Expands block `block` of a panel.
template <int Bits, class T>
void expand_block(const LowbitParams& p, const uint8_t* panel, int64_t block,
                  const PanelConstants& c, const float* codebook, T* out) {
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t index = 2 * block + half;
    const int64_t group = index / p.group_units < p.groups ? index / p.group_units : p.groups - 1;
    const Unit unit = unit_of<Bits>(panel, index, 0);
    for (int64_t channel = 0; channel < kLowbitPanel; channel += Vec::kWidth) {
      const int64_t place = group * kLowbitPanel + channel;
      const Vec scale = Vec::load(c.scale + place);
      Vec zero = to_vec(load_ints(c.zero + place));
      if (c.fraction) zero = zero + Vec::load(c.fraction + place);
      const float* table = codebook ? codebook + (channel << Bits) : nullptr;
      const Ints lane_tables = load_ints(kLaneIndices) * set_ints(1 << Bits);
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad) {
        const Bytes codes = codes_of<Bits>(unit, quad, channel);
        const Ints members[4] = {member<0>(codes), member<1>(codes), member<2>(codes),
                                 member<3>(codes)};
        Vec values[4];
        for (int i = 0; i < 4; ++i)
          values[i] =
              (table ? gather(table, lane_tables + members[i]) : to_vec(members[i]) - zero) * scale;
        put_quad(values, static_cast<int>(half) * kQuads + quad, channel, out);
      }
    }
  }
}

// sums (rows, kLowbitPanel) = rows of x times a panel.
template <int Bits, class T>
void multiply_floats(const LowbitParams& p, const uint8_t* panel, const T* x, int64_t x_stride,
                     int64_t rows, const PanelConstants& c, const LowbitScratch& scratch) {
  T* values = reinterpret_cast<T*>(scratch.values);
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t block = 0, k = 0; k < p.in_features; ++block, k += kLowbitBlock) {
    const int64_t depth = p.in_features - k < kLowbitBlock ? p.in_features - k : kLowbitBlock;
    expand_block<Bits>(p, panel, block, c, p.codebook ? scratch.codebook : nullptr, values);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t begin = rows * tile / tiles, end = rows * (tile + 1) / tiles;
      multiply_rows(end - begin, x + begin * x_stride + k, x_stride, values, depth, block > 0,
                    scratch.sums + begin * kLowbitPanel);
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

}  // namespace TAUT_ISA
}  // namespace taut
