// AMX tiles: one small wrapper per instruction.
//
// Eight tiles of up to 16 rows x 64 bytes. bf16 products: A is rows x (pairs of k), B is (pairs of
// k) x 16 columns with the two members of a pair side by side, C is rows x 16 fp32.
//   C[m][n] += sum over k of A[m][2k] * B[k][2n] + A[m][2k+1] * B[k][2n+1]
// int8 products: A holds signed, B unsigned bytes, four k to a column of 32 bits; C is int32.
// Source: Intel SDM, "AMX instruction set reference": LDTILECFG, TILELOADD, TILESTORED, TILEZERO,
// TDPBF16PS, TDPBSUD.
#pragma once
#if defined(TAUT_ISA_amx)
#include <immintrin.h>

#include <cstdint>

#include "cpu/isa/reload.h"

namespace taut {
namespace TAUT_ISA {

// What LDTILECFG reads: palette 1, then the bytes per row and the rows of each tile.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int tile_rows, int tile_row_bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(tile_row_bytes);
  }
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

// Tiles 0 to 3 hold C, 4 and 5 A, 6 and 7 B, of products of so many rows and bytes of k.
inline TileConfig product_tiles(int64_t rows, int64_t depth) {
  TileConfig config;
  for (int tile = 0; tile < 4; ++tile) config.set(tile, static_cast<int>(rows), 64);
  for (int tile = 4; tile < 6; ++tile)
    config.set(tile, static_cast<int>(rows), static_cast<int>(depth));
  for (int tile = 6; tile < 8; ++tile) config.set(tile, static_cast<int>(depth / 4), 64);
  return config;
}

// Not _tile_loadconfig, of which gcc 12 says that it reads 8 bytes: stores of the others would be
// left out. Of TILELOADD it says that it reads none; a fence for the compiler keeps stores in front
// of it.
inline void tile_configure(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
inline void tile_release() { _tile_release(); }
// The compiler pastes the tile number into the instruction, so it must be a literal: macros.
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, base, stride_bytes) \
  do {                                      \
    reload_memory();                        \
    _tile_loadd(tile, base, stride_bytes);  \
  } while (false)
#define TILE_STORE(tile, base, stride_bytes) _tile_stored(tile, base, stride_bytes)
#define TILE_DOT_BF16(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_DOT_INT8(c, a, b) _tile_dpbsud(c, a, b)

}  // namespace TAUT_ISA
}  // namespace taut
#endif
