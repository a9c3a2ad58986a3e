// The matrix product of bf16 packed linear layers by AMX tiles.
//
// A block is 32 rows x 32 channels: 2 x 2 tiles of sums, 2 tiles of x (16 rows x 32 k, read in
// place) and 2 of the weight (16 k-pairs x 16 channels, read in place: a panel's rows are 256
// bytes apart). 4 tile loads feed 4 TDPBF16PS, which occupy the tile unit for 16 cycles each; the
// loads are 64 cache lines, 32 cycles at two lines per cycle from L1 and about 64 from L2. So the
// products set the pace while x or the panel hits L1, and L2 does otherwise.
//
// The vector unit is free meanwhile: each block's sums are finished (bias, activation, rounding)
// a few rows at a time between the k-steps of the next block.
#pragma once
#include "cpu/dense_gemm.h"
#include "cpu/isa/tiles.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kTile = 16;      // rows and channels of a tile of sums
constexpr int64_t kTileDepth = 32;  // k per tile of x
constexpr int64_t kBlock = 2 * kTile;

// Two rows of tiles, at row[0] and row[1], by 32 channels. Where rows run out the tiles overlap:
// rows that lie in both are computed, and finished, twice with the same result. So all tiles of a
// call have the same shape, and one configuration serves it.
struct TileBlock {
  int64_t row[2];
  int64_t channel, channels;
  const float* sums = nullptr;  // (2 * kTile, kBlock)
};

inline TileConfig gemm_tile_config(int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 6; ++tile) config.set(tile, static_cast<int>(rows), 64);
  for (int tile = 6; tile < 8; ++tile) config.set(tile, kTile, 64);
  return config;
}

// Tiles 0 to 3 += x (tiles 4, 5) times 32 k x 32 channels of a panel (tiles 6, 7).
inline void multiply_tiles(const bf16* x0, const bf16* x1, int64_t x_stride, const bf16* weights) {
  constexpr int64_t kPairRowBytes = kPanel * 2 * sizeof(bf16);
  const int64_t x_stride_bytes = x_stride * static_cast<int64_t>(sizeof(bf16));
  TILE_LOAD(6, weights, kPairRowBytes);
  TILE_LOAD(4, x0, x_stride_bytes);
  TILE_DOT_BF16(0, 4, 6);
  TILE_LOAD(7, weights + 2 * kTile, kPairRowBytes);
  TILE_DOT_BF16(1, 4, 7);
  TILE_LOAD(5, x1, x_stride_bytes);
  TILE_DOT_BF16(2, 5, 6);
  TILE_DOT_BF16(3, 5, 7);
}

inline void store_tiles(float* sums) {
  constexpr int64_t kRowBytes = kBlock * sizeof(float);
  TILE_STORE(0, sums, kRowBytes);
  TILE_STORE(1, sums + kTile, kRowBytes);
  TILE_STORE(2, sums + kTile * kBlock, kRowBytes);
  TILE_STORE(3, sums + kTile * kBlock + kTile, kRowBytes);
}

// Finishes rows [begin, begin + count) of a block's 32.
template <class Finish>
inline void finish_rows(const TileBlock& block, int64_t tile_rows, int64_t begin, int64_t count,
                        const Finish& finish) {
  for (int64_t r = begin; r < begin + count && r < 2 * kTile; ++r)
    if (r % kTile < tile_rows)
      finish(block.sums + r * kBlock, kBlock, block.row[r / kTile] + r % kTile, 1, block.channel,
             block.channels);
}

// The k behind the last whole tile, padded with zeros: nothing behind a row or panel is read.
struct Tail {
  alignas(64) bf16 x[kMaxGemmRows][kTileDepth];
  alignas(64) bf16 weights[kTile][kPanel * 2];
};

// Calls finish(sums, stride, row, rows, channel, channels) until every part of the block had it.
template <class Finish>
void multiply_by_tiles(const GemmParams& p, const GemmBlock& block, const Finish& finish) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t tile_rows = rows < kTile ? rows : kTile, last = rows - tile_rows;
  const int64_t whole = p.in_features / kTileDepth, tail_k = p.in_features % kTileDepth;
  const int64_t steps = whole + (tail_k ? 1 : 0), rows_per_step = (kBlock + steps - 1) / steps;
  const int64_t panel_size = (p.in_features + 1) / 2 * 2 * kPanel;
  const int64_t step_size = kTileDepth * kPanel;
  const bf16* x = static_cast<const bf16*>(p.x) + block.row_begin * p.x_stride;

  Tail tail;
  if (tail_k) {
    std::memset(tail.x, 0, static_cast<size_t>(rows) * sizeof(tail.x[0]));
    std::memset(tail.weights, 0, sizeof(tail.weights));
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(tail.x[r], x + r * p.x_stride + whole * kTileDepth,
                  static_cast<size_t>(tail_k) * sizeof(bf16));
  }

  alignas(64) float sums[2][kBlock * kBlock];
  TileBlock previous;
  int parity = 0;
  tile_configure(gemm_tile_config(tile_rows));
  for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
    const bf16* weights = static_cast<const bf16*>(p.packed) + panel * panel_size;
    if (tail_k)
      std::memcpy(tail.weights, weights + whole * step_size,
                  static_cast<size_t>(panel_size - whole * step_size) * sizeof(bf16));
    for (int64_t r = 0; r < rows; r += kBlock) {
      const int64_t r0 = r < last ? r : last, r1 = r + kTile < last ? r + kTile : last;
      for (int64_t half = 0; half < kPanel; half += kBlock) {
        const int64_t channel = panel * kPanel + half, left = p.out_features - channel;
        if (left <= 0) break;
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (int64_t step = 0; step < steps; ++step) {
          if (step < whole) {
            const int64_t k = step * kTileDepth;
            multiply_tiles(x + r0 * p.x_stride + k, x + r1 * p.x_stride + k, p.x_stride,
                           weights + step * step_size + 2 * half);
          } else {
            multiply_tiles(tail.x[r0], tail.x[r1], kTileDepth, tail.weights[0] + 2 * half);
          }
          if (previous.sums)
            finish_rows(previous, tile_rows, step * rows_per_step, rows_per_step, finish);
        }
        store_tiles(sums[parity]);
        previous = {{block.row_begin + r0, block.row_begin + r1}, channel,
                    left < kBlock ? left : kBlock, sums[parity]};
        parity ^= 1;
      }
    }
  }
  finish_rows(previous, tile_rows, 0, kBlock, finish);
  tile_release();
}

}  // namespace TAUT_ISA
}  // namespace taut
