// Matrix products by AMX tiles: bf16 with sums in fp32, int8 with sums in int32.
//
// A block is 32 rows x 32 channels: 2 x 2 tiles of sums, 2 tiles of x (16 rows x 64 bytes of k) and
// 2 of the weight (16 channels x 4 bytes of k per row, 16 rows), read in place: a panel's rows are
// 256 bytes apart. 4 tile loads, 64 cache lines, feed 4 products. Measured on a Xeon with AMX, in
// cycles per 4 products: 64 alone, 70 to 75 with all loads from L1, 92 to 98 where the weight comes
// from L2, 120 to 145 where x does too. So a block's rows stay in L1, up to 768 bytes of k, while
// the channels pass by; the other way round the weight would share half of L1's sets, those of 128
// bytes of every 256. Storing 4 tiles takes 70 cycles.
//
// Each block's sums are finished (scales, bias, activation, rounding) a few rows at a time between
// the k-steps of the next block. While products run, one multiply-add of 512 bits starts per cycle
// instead of two, permutes go beside them: finishing a block costs about as much as its products at
// 384 bytes of k.
#pragma once
#include <type_traits>

#include "cpu/isa/tiles.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kTile = 16;              // rows and channels of a tile of sums
constexpr int64_t kTileBlock = 2 * kTile;  // of a block
constexpr int64_t kTileWeightStride = 256;
constexpr int64_t kPanelChannels = 64;
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

// Rows of x times the channels [channel_begin, channel_end) of a weight of panels of 64 channels.
// Strides and depth in bytes. A k-step is `depth` of k; steps come in groups, each with sums of its
// own. k behind the last whole step comes from copies padded with zeros, if there is any.
struct TileProduct {
  const char* x;
  int64_t x_stride, rows;
  const char* panels;
  int64_t panel_bytes, channel_begin, channel_end;
  int64_t depth, steps, group_steps;
  const char* x_tail = nullptr;  // rows of `depth`

  int64_t tile_rows() const { return rows < kTile ? rows : kTile; }
  // Where 32 channels begin, and how far one k-step of theirs lies from the next.
  const char* weights(int64_t channel) const {
    return panels + channel / kPanelChannels * panel_bytes + channel % kPanelChannels * 4;
  }
  int64_t step_bytes() const { return depth / 4 * kTileWeightStride; }
};

// Asks for a k-step of 32 channels to be fetched into L2.
inline void prefetch_weights(const char* weights, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    _mm_prefetch(weights + i * kTileWeightStride, _MM_HINT_T1);
    _mm_prefetch(weights + i * kTileWeightStride + 64, _MM_HINT_T1);
  }
}

// A part of a block: so many rows from `row` of the product on and 32 channels, with the sums of
// one group of k-steps, rows of kTileBlock. `first` is its first row within the block.
template <class Sum>
struct TilePart {
  const Sum* sums;
  int64_t first, row, rows, channel, group;
};

// Calls finish(part) until every row of every group's sums had it, and prepare(row, rows, channel)
// for what it needs some time before. Groups of a block come in order. Where rows run out the tiles
// of a block overlap: rows that lie in both are computed, and finished, twice with the same result.
// So all tiles of a product have the same shape, and one configuration serves it. tail_weights: see
// TileProduct.
template <class Sum, class TailWeights, class Prepare, class Finish>
void multiply_by_tiles(const TileProduct& product, const TailWeights& tail_weights,
                       const Prepare& prepare, const Finish& finish) {
  const int64_t tile_rows = product.tile_rows(), last = product.rows - tile_rows;
  const int64_t depth = product.depth, step_bytes = product.step_bytes();
  alignas(64) Sum memory[2][kTileBlock * kTileBlock];
  struct {
    const Sum* sums;
    int64_t row[2], channel, group;
  } previous{};
  int64_t part = kTileParts;
  // Finishes parts of the previous block until so many are done.
  const auto finish_parts = [&](int64_t until) {
    for (; part < until; ++part) {
      const int64_t first = part * kPartRows, tile = first / kTile, row = first % kTile;
      const int64_t left = tile_rows - row;
      if (left > 0)
        finish(TilePart<Sum>{previous.sums + first * kTileBlock, first, previous.row[tile] + row,
                             left < kPartRows ? left : kPartRows, previous.channel,
                             previous.group});
    }
  };
  int parity = 0;
  for (int64_t row = 0; row < product.rows; row += kTileBlock)
    for (int64_t channel = product.channel_begin; channel < product.channel_end;
         channel += kTileBlock) {
      const int64_t rows[2] = {row < last ? row : last, row + kTile < last ? row + kTile : last};
      for (int64_t r : rows) prepare(r, tile_rows, channel);
      const char* x0 = product.x + rows[0] * product.x_stride;
      const char* x1 = product.x + rows[1] * product.x_stride;
      const char* weights = product.weights(channel);
      const bool fetches = row == 0 && channel + kTileBlock < product.channel_end;
      const char* following = fetches ? product.weights(channel + kTileBlock) : nullptr;
      for (int64_t begin = 0, group = 0; begin < product.steps;
           begin += product.group_steps, ++group) {
        const int64_t left = product.steps - begin;
        const int64_t steps = left < product.group_steps ? left : product.group_steps;
        zero_tiles();
        for (int64_t step = 0; step < steps; ++step) {
          if (product.x_tail && step == steps - 1)
            multiply_tiles<Sum>(product.x_tail + rows[0] * depth, product.x_tail + rows[1] * depth,
                                depth, tail_weights(channel), kTileBlock * 4);
          else
            multiply_tiles<Sum>(x0, x1, product.x_stride, weights);
          if (following) {
            prefetch_weights(following, depth / 4);
            following += step_bytes;
          }
          x0 += depth;
          x1 += depth;
          weights += step_bytes;
          finish_parts(kTileParts * (step + 1) / steps);
        }
        store_tiles(memory[parity], kTileBlock);
        previous = {memory[parity], {rows[0], rows[1]}, channel, group};
        parity ^= 1;
        part = 0;
      }
    }
  finish_parts(kTileParts);
}

}  // namespace TAUT_ISA
}  // namespace taut
