// AMX tiles: one small wrapper per instruction, with a twin in plain loops for amx_emulated.
//
// Eight tiles of up to 16 rows x 64 bytes. bf16 products: A is rows x (pairs of k), B is (pairs of
// k) x 16 columns with the two members of a pair side by side, C is rows x 16 fp32.
//   C[m][n] += sum over k of A[m][2k] * B[k][2n] + A[m][2k+1] * B[k][2n+1]
// int8 products: A holds signed, B unsigned bytes, four k to a column of 32 bits; C is int32.
// Source: Intel SDM, "AMX instruction set reference": LDTILECFG, TILELOADD, TILESTORED, TILEZERO,
// TDPBF16PS, TDPBSUD.
#pragma once
#if defined(TAUT_ISA_amx) || defined(TAUT_ISA_amx_emulated)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/isa/half.h"
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

#if defined(TAUT_ISA_amx)

// gcc 12 says of LDTILECFG that it reads 8 bytes, and of TILELOADD that it reads none: stores that
// it then held to be of no use, or moved behind them, would be missing. An address that lies in
// memory may be read by anybody, and the fence is for the compiler alone.
inline void tile_configure(const TileConfig& config) {
  const TileConfig* volatile address = &config;
  reload_memory();
  _tile_loadconfig(address);
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

#else

struct EmulatedTiles {
  TileConfig config;
  bool configured = false;
  alignas(64) uint8_t data[8][16][64];
};
inline EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}
// A use of tiles that LDTILECFG has not described is a fault on hardware, and so it is here.
inline EmulatedTiles& configured_tiles() {
  EmulatedTiles& tiles = emulated_tiles();
  if (!tiles.configured) __builtin_trap();
  return tiles;
}

inline void tile_configure(const TileConfig& config) {
  EmulatedTiles& tiles = emulated_tiles();
  tiles.config = config;
  tiles.configured = true;
  std::memset(tiles.data, 0, sizeof(tiles.data));
}
inline void tile_release() { emulated_tiles().configured = false; }
inline void emulated_zero(int tile) {
  std::memset(configured_tiles().data[tile], 0, sizeof(EmulatedTiles::data[0]));
}
inline void emulated_load(int tile, const void* base, int64_t stride_bytes) {
  EmulatedTiles& tiles = configured_tiles();
  std::memset(tiles.data[tile], 0, sizeof(tiles.data[tile]));
  for (int row = 0; row < tiles.config.rows[tile]; ++row)
    std::memcpy(tiles.data[tile][row], static_cast<const uint8_t*>(base) + row * stride_bytes,
                tiles.config.row_bytes[tile]);
}
inline void emulated_store(int tile, void* base, int64_t stride_bytes) {
  EmulatedTiles& tiles = configured_tiles();
  for (int row = 0; row < tiles.config.rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(base) + row * stride_bytes, tiles.data[tile][row],
                tiles.config.row_bytes[tile]);
}
// The 32-bit units in a row of A. The hardware faults when the shapes of the three tiles do not fit
// together.
inline int emulated_depth(const EmulatedTiles& tiles, int tile_c, int tile_a, int tile_b) {
  const int depth = tiles.config.row_bytes[tile_a] / 4;
  if (tiles.config.rows[tile_c] != tiles.config.rows[tile_a] ||
      tiles.config.rows[tile_b] != depth ||
      tiles.config.row_bytes[tile_c] != tiles.config.row_bytes[tile_b])
    __builtin_trap();
  return depth;
}
inline void emulated_dot_bf16(int tile_c, int tile_a, int tile_b) {
  EmulatedTiles& tiles = configured_tiles();
  const int pairs = emulated_depth(tiles, tile_c, tile_a, tile_b);
  for (int m = 0; m < tiles.config.rows[tile_c]; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int k = 0; k < pairs; ++k) {
      uint32_t a;
      std::memcpy(&a, tiles.data[tile_a][m] + 4 * k, 4);
      const __m512i b = _mm512_load_si512(tiles.data[tile_b][k]);
      const __m512 b_even = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
      const __m512 b_odd = _mm512_castsi512_ps(
          _mm512_and_si512(b, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
      even = _mm512_fmadd_ps(_mm512_set1_ps(as_float(a << 16)), b_even, even);
      odd = _mm512_fmadd_ps(_mm512_set1_ps(as_float(a & 0xffff0000u)), b_odd, odd);
    }
    float* c = reinterpret_cast<float*>(tiles.data[tile_c][m]);
    _mm512_store_ps(c, _mm512_add_ps(_mm512_load_ps(c), _mm512_add_ps(even, odd)));
  }
}
inline void emulated_dot_int8(int tile_c, int tile_a, int tile_b) {
  EmulatedTiles& tiles = configured_tiles();
  const int quads = emulated_depth(tiles, tile_c, tile_a, tile_b);
  for (int m = 0; m < tiles.config.rows[tile_c]; ++m) {
    __m512i c = _mm512_load_si512(tiles.data[tile_c][m]);
    for (int k = 0; k < quads; ++k) {
      int32_t a;
      std::memcpy(&a, tiles.data[tile_a][m] + 4 * k, 4);
      c = _mm512_dpbusd_epi32(c, _mm512_load_si512(tiles.data[tile_b][k]), _mm512_set1_epi32(a));
    }
    _mm512_store_si512(tiles.data[tile_c][m], c);
  }
}
#define TILE_ZERO(tile) emulated_zero(tile)
#define TILE_LOAD(tile, base, stride_bytes) emulated_load(tile, base, stride_bytes)
#define TILE_STORE(tile, base, stride_bytes) emulated_store(tile, base, stride_bytes)
#define TILE_DOT_BF16(c, a, b) emulated_dot_bf16(c, a, b)
#define TILE_DOT_INT8(c, a, b) emulated_dot_int8(c, a, b)

#endif

}  // namespace TAUT_ISA
}  // namespace taut
#endif
