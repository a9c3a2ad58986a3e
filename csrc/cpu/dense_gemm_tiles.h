// The matrix product of bf16 packed linear layers by AMX tiles.
//
// A block is 32 rows x 32 channels: 2 x 2 tiles of sums, 2 tiles of x (16 rows x 32 k, read in
// place) and 2 of the weight (16 k-pairs x 16 channels, read in place: a panel's rows are 256
// bytes apart). 4 tile loads feed 4 TDPBF16PS, which take the tile unit 16 cycles each; the loads
// are 64 cache lines, 32 cycles from L1 at two lines a cycle. 32 channels of the weight stay in L1
// up to K = 512 while all rows of the call pass by, so x alone comes from L2: 32 bytes a cycle, of
// the 48 that L2 gives. Beyond, all four come from L2, which on Sapphire Rapids allows 75 % of the
// peak (2.33 of 3.12 TFLOP/s a core for this ratio of loads, measured without a GEMM around it).
//
// The vector unit is free meanwhile: each block's sums are finished (bias, activation, rounding)
// a few rows at a time between the k-steps of the next block.
#pragma once
#include "cpu/dense_gemm.h"
#include "cpu/isa/tiles.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kTile = 16;       // rows and channels of a tile of sums
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

// Tiles 0 to 3 += x (tiles 4, 5) times 32 k x 32 channels of a weight (tiles 6, 7). Strides in
// elements: between rows of x and between k-pairs of the weight.
inline void multiply_tiles(const bf16* x0, const bf16* x1, int64_t x_stride, const bf16* weights,
                           int64_t pair_stride) {
  const int64_t x_stride_bytes = x_stride * static_cast<int64_t>(sizeof(bf16));
  const int64_t pair_stride_bytes = pair_stride * static_cast<int64_t>(sizeof(bf16));
  TILE_LOAD(6, weights, pair_stride_bytes);
  TILE_LOAD(4, x0, x_stride_bytes);
  TILE_DOT_BF16(0, 4, 6);
  TILE_LOAD(7, weights + 2 * kTile, pair_stride_bytes);
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
  alignas(64) bf16 weights[kTile][kBlock * 2];
};

// Asks for part `index` of `parts` of 32 k x 32 channels of a panel to be fetched into L2.
inline void prefetch_weights(const bf16* weights, int64_t index, int64_t parts) {
  for (int64_t pair = kTile * index / parts; pair < kTile * (index + 1) / parts; ++pair) {
    _mm_prefetch(reinterpret_cast<const char*>(weights + pair * kPanel * 2), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(weights + pair * kPanel * 2 + 32), _MM_HINT_T1);
  }
}

// Calls finish(sums, stride, row, rows, channel, channels) until every part of the block had it.
template <class Finish>
void multiply_by_tiles(const GemmParams& p, const GemmBlock& block, const Finish& finish) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t tile_rows = rows < kTile ? rows : kTile, last = rows - tile_rows;
  const int64_t row_blocks = (rows + kBlock - 1) / kBlock;
  const int64_t whole = p.in_features / kTileDepth, tail_k = p.in_features % kTileDepth;
  const int64_t steps = whole + (tail_k ? 1 : 0), rows_per_step = (kBlock + steps - 1) / steps;
  const int64_t panel_size = (p.in_features + 1) / 2 * 2 * kPanel;
  const int64_t step_size = kTileDepth * kPanel;
  const int64_t stride = p.x_stride;
  const bf16* x = static_cast<const bf16*>(p.x) + block.row_begin * stride;
  const auto weights_of = [&](int64_t channel) {
    return static_cast<const bf16*>(p.packed) + channel / kPanel * panel_size +
           channel % kPanel * 2;
  };

  Tail tail;
  if (tail_k) {
    std::memset(tail.x, 0, static_cast<size_t>(rows) * sizeof(tail.x[0]));
    std::memset(tail.weights, 0, sizeof(tail.weights));
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(tail.x[r], x + r * stride + whole * kTileDepth,
                  static_cast<size_t>(tail_k) * sizeof(bf16));
  }

  alignas(64) float sums[2][kBlock * kBlock];
  TileBlock previous;
  int parity = 0;
  const int64_t panel_end = block.panel_end * kPanel;
  const int64_t end = panel_end < p.out_features ? panel_end : p.out_features;
  tile_configure(gemm_tile_config(tile_rows));
  for (int64_t channel = block.panel_begin * kPanel; channel < end; channel += kBlock) {
    const bf16* weights = weights_of(channel);
    const bf16* next = weights_of(channel + kBlock < end ? channel + kBlock : channel);
    for (int64_t row = 0; tail_k && row < (tail_k + 1) / 2; ++row)
      std::memcpy(tail.weights[row], weights + whole * step_size + row * kPanel * 2,
                  sizeof(tail.weights[0]));
    for (int64_t b = 0; b < row_blocks; ++b) {
      const int64_t r = b * kBlock;
      const int64_t r0 = r < last ? r : last, r1 = r + kTile < last ? r + kTile : last;
      TILE_ZERO(0);
      TILE_ZERO(1);
      TILE_ZERO(2);
      TILE_ZERO(3);
      for (int64_t step = 0; step < steps; ++step) {
        if (step < whole) {
          const bf16* x_step = x + step * kTileDepth;
          multiply_tiles(x_step + r0 * stride, x_step + r1 * stride, stride,
                         weights + step * step_size, kPanel * 2);
          prefetch_weights(next + step * step_size, b, row_blocks);
        } else {
          multiply_tiles(tail.x[r0], tail.x[r1], kTileDepth, tail.weights[0], kBlock * 2);
        }
        if (previous.sums)
          finish_rows(previous, tile_rows, step * rows_per_step, rows_per_step, finish);
      }
      store_tiles(sums[parity]);
      previous = {{block.row_begin + r0, block.row_begin + r1},
                  channel,
                  end - channel < kBlock ? end - channel : kBlock,
                  sums[parity]};
      parity ^= 1;
    }
  }
  finish_rows(previous, tile_rows, 0, kBlock, finish);
  tile_release();
}

}  // namespace TAUT_ISA
}  // namespace taut
