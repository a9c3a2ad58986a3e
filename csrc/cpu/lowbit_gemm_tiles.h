// The integer product of low-bit linear layers by AMX tiles.
//
// A block is 32 rows x 32 channels: 2 x 2 tiles of sums, 2 tiles of staged x (16 rows x 64 k) and 2
// of codes (16 quads of k x 16 channels), read in place from panels of 8 bits: their rows are 256
// bytes apart. Narrower codes are expanded to such a panel first, which stays in L2 while the
// rows of the call pass by.
#pragma once
#include "cpu/isa/tiles.h"
#include "cpu/lowbit_gemm_integers.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kIntegerTile = 16;  // rows and channels of a tile of sums
static_assert(kIntegerBlock == 2 * kIntegerTile, "a block is 2 x 2 tiles of sums");

inline bool worth_tiles(const LowbitParams& p, int64_t rows) {
  return rows >= kFewestTileRows && (p.groups == 1 || p.group_units % 2 == 0);
}

inline TileConfig integer_tile_config() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, kIntegerTile, 64);
  return config;
}

// Tiles 0 to 3 += x (tiles 4, 5) times 64 k x 32 channels of codes (tiles 6, 7).
inline void multiply_integer_tiles(const int8_t* x, int64_t x_stride, const uint8_t* codes) {
  TILE_LOAD(6, codes, kRowBytes);
  TILE_LOAD(4, x, x_stride);
  TILE_DOT_INT8(0, 4, 6);
  TILE_LOAD(7, codes + 64, kRowBytes);
  TILE_DOT_INT8(1, 4, 7);
  TILE_LOAD(5, x + kIntegerTile * x_stride, x_stride);
  TILE_DOT_INT8(2, 5, 6);
  TILE_DOT_INT8(3, 5, 7);
}

inline void zero_integer_tiles() {
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
}

// To rows of sums `stride` apart.
inline void store_integer_tiles(int32_t* sums, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(int32_t));
  TILE_STORE(0, sums, bytes);
  TILE_STORE(1, sums + kIntegerTile, bytes);
  TILE_STORE(2, sums + kIntegerTile * stride, bytes);
  TILE_STORE(3, sums + kIntegerTile * stride + kIntegerTile, bytes);
}

// out (rows, kLowbitPanel) = so many rows of x times a panel of 8 bits. Staged rows reach to a
// multiple of 32; out has only so many as there are.
inline void multiply_by_integer_tiles(const LowbitParams& p, const uint8_t* panel,
                                      const LowbitRows& x, const PanelConstants& constants,
                                      float* out, int64_t rows) {
  alignas(64) int32_t sums[kIntegerBlock * kLowbitPanel];
  const int64_t stride = p.codes_stride(), blocks = p.blocks();
  const int64_t group_blocks = p.groups == 1 ? blocks : p.group_units / 2;
  for (int64_t channel = 0; channel < kLowbitPanel; channel += kIntegerBlock)
    for (int64_t row = 0; row < rows; row += kIntegerBlock) {
      const int64_t count = rows - row < kIntegerBlock ? rows - row : kIntegerBlock;
      const IntegerTile t{panel, x.from(p, row), constants, sums, out + row * kLowbitPanel};
      for (int64_t group = 0, begin = 0; group < p.groups; ++group, begin += group_blocks) {
        const int64_t end = begin + group_blocks < blocks ? begin + group_blocks : blocks;
        zero_integer_tiles();
        for (int64_t b = begin; b < end; ++b)
          multiply_integer_tiles(t.rows.codes + b * kLowbitBlock, stride,
                                 panel + b * kBlockBytes<8> + 4 * channel);
        store_integer_tiles(sums + channel, kLowbitPanel);
        add_group(p, t, group, channel, count, kIntegerBlock);
      }
    }
}

}  // namespace TAUT_ISA
}  // namespace taut
