// Matrix products by AMX tiles: bf16 with sums in fp32, int8 with sums in int32.
//
// A block is 32 rows x 32 channels: 2 x 2 tiles of sums, 2 tiles of x (16 rows x 64 bytes of k) and
// 2 of the weight (16 channels x 4 bytes of k per row, 16 rows), read in place: a panel's rows are
// 256 bytes apart. 4 tile loads feed 4 products, which take the tile unit 16 cycles each; the loads
// are 64 cache lines, 32 cycles from L1 at two lines a cycle. 32 channels of the weight stay in L1
// up to 1024 bytes of k while all rows of the call pass by, so x alone comes from L2: 32 bytes a
// cycle, of the 48 that L2 gives. Beyond, all four come from L2, which on Sapphire Rapids allows
// 75 % of the peak (bf16, 2.33 of 3.12 TFLOP/s a core for this ratio of loads, measured without a
// GEMM around it).
//
// The vector unit is free meanwhile: each block's sums are finished (scales, bias, activation,
// rounding) a few rows at a time between the k-steps of the next block.
#pragma once
#include <type_traits>

#include "cpu/isa/tiles.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kTile = 16;              // rows and channels of a tile of sums
constexpr int64_t kTileBlock = 2 * kTile;  // of a block
constexpr int64_t kTileWeightStride = 256;
constexpr int64_t kPartRows = 8;  // of a block, which are finished together
constexpr int64_t kTileParts = kTileBlock / kPartRows;

// Tiles 0 to 3 += x (tiles 4, 5) times 32 channels of a weight (tiles 6, 7). Strides in bytes.
template <class Sum>
inline void multiply_tiles(const void* x0, const void* x1, int64_t x_stride, const void* weights,
                           int64_t weight_stride = kTileWeightStride) {
#define TILE_DOT(c, a, b)                \
  if constexpr (std::is_integral_v<Sum>) \
    TILE_DOT_INT8(c, a, b);              \
  else                                   \
    TILE_DOT_BF16(c, a, b)
  TILE_LOAD(6, weights, weight_stride);
  TILE_LOAD(4, x0, x_stride);
  TILE_DOT(0, 4, 6);
  TILE_LOAD(7, static_cast<const char*>(weights) + 64, weight_stride);
  TILE_DOT(1, 4, 7);
  TILE_LOAD(5, x1, x_stride);
  TILE_DOT(2, 5, 6);
  TILE_DOT(3, 5, 7);
#undef TILE_DOT
}

inline void zero_tiles() {
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
}

// To rows of sums `stride` apart.
template <class Sum>
inline void store_tiles(Sum* sums, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(Sum));
  TILE_STORE(0, sums, bytes);
  TILE_STORE(1, sums + kTile, bytes);
  TILE_STORE(2, sums + kTile * stride, bytes);
  TILE_STORE(3, sums + kTile * stride + kTile, bytes);
}

// A product of `rows` rows and the channels [channel_begin, channel_end). A k-step is `depth` bytes
// of k; steps come in groups, each with sums of its own.
struct TileProduct {
  int64_t rows, channel_begin, channel_end, depth, steps, group_steps;

  int64_t tile_rows() const { return rows < kTile ? rows : kTile; }
};

// Two rows of tiles, at row[0] and row[1], by 32 channels. Where rows run out the tiles overlap:
// rows that lie in both are computed, and finished, twice with the same result. So all tiles of a
// product have the same shape, and one configuration serves it.
struct TileBlock {
  int64_t row[2];
  int64_t channel;
  int64_t fetch_begin, fetch_end;  // its share of the rows of a k-step of the next 32 channels

  // Asks for this share of a k-step's weight to be fetched into L2.
  void prefetch(const void* weights) const {
    for (int64_t i = fetch_begin; i < fetch_end; ++i) {
      const char* row = static_cast<const char*>(weights) + i * kTileWeightStride;
      _mm_prefetch(row, _MM_HINT_T1);
      _mm_prefetch(row + 64, _MM_HINT_T1);
    }
  }
};

// The sums of a group of k-steps, (kTileBlock, kTileBlock).
template <class Sum>
struct TileSums {
  TileBlock block;
  int64_t group;
  Sum* sums;
};

// Calls multiply(block, step) for tiles 0 to 3 to be added to, and finish(sums, first, row, rows)
// until every row of every group's sums had it: so many rows from `row` of the product on, which
// are those from `first` on of the sums. Groups of a block come in order.
template <class Sum, class Multiply, class Finish>
void multiply_by_tiles(const TileProduct& product, const Multiply& multiply, const Finish& finish) {
  const int64_t tile_rows = product.tile_rows(), last = product.rows - tile_rows;
  const int64_t row_blocks = (product.rows + kTileBlock - 1) / kTileBlock;
  const int64_t weight_rows = product.depth / 4;
  alignas(64) Sum memory[2][kTileBlock * kTileBlock];
  int parity = 0;
  TileSums<Sum> previous{};
  // Finishes parts of the previous block until so many are done.
  int64_t part = kTileParts;
  const auto finish_parts = [&](int64_t until) {
    for (; part < until; ++part) {
      const int64_t first = part * kPartRows, tile = first / kTile, row = first % kTile;
      const int64_t left = tile_rows - row;
      if (left > 0)
        finish(previous, first, previous.block.row[tile] + row,
               left < kPartRows ? left : kPartRows);
    }
  };
  for (int64_t channel = product.channel_begin; channel < product.channel_end;
       channel += kTileBlock)
    for (int64_t b = 0; b < row_blocks; ++b) {
      const int64_t row = b * kTileBlock;
      const TileBlock block{{row < last ? row : last, row + kTile < last ? row + kTile : last},
                            channel,
                            weight_rows * b / row_blocks,
                            weight_rows * (b + 1) / row_blocks};
      for (int64_t begin = 0, group = 0; begin < product.steps;
           begin += product.group_steps, ++group) {
        const int64_t left = product.steps - begin;
        const int64_t steps = left < product.group_steps ? left : product.group_steps;
        zero_tiles();
        for (int64_t step = 0; step < steps; ++step) {
          multiply(block, begin + step);
          finish_parts(kTileParts * (step + 1) / steps);
        }
        store_tiles(memory[parity], kTileBlock);
        previous = {block, group, memory[parity]};
        parity ^= 1;
        part = 0;
      }
    }
  finish_parts(kTileParts);
}

}  // namespace TAUT_ISA
}  // namespace taut
