// The matrix product of bf16 packed linear layers by AMX tiles.
#pragma once
#include "cpu/dense_gemm.h"
#include "cpu/gemm_tiles.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kTileDepth = 32;  // k per tile of x

// The k behind the last whole tile, padded with zeros: nothing behind a row or panel is read.
struct Tail {
  alignas(64) bf16 x[kMaxGemmRows][kTileDepth];
  alignas(64) bf16 weights[kTile][kTileBlock * 2];
  int64_t channel = -1;  // that of the weights
};

// Calls finish(sums, stride, row, rows, channel, channels) until every part of the block had it.
template <class Prepare, class Finish>
void multiply_bf16_by_tiles(const GemmParams& p, const GemmBlock& block, const Prepare& prepare,
                            const Finish& finish) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t whole = p.in_features / kTileDepth, tail_k = p.in_features % kTileDepth;
  const int64_t panel_size = (p.in_features + 1) / 2 * 2 * kPanel;
  const int64_t step_size = kTileDepth * kPanel;
  const int64_t stride = p.x_stride, stride_bytes = stride * static_cast<int64_t>(sizeof(bf16));
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
  const auto tail_weights_of = [&](int64_t channel) {
    if (channel != tail.channel) {
      const bf16* from = weights_of(channel) + whole * step_size;
      for (int64_t row = 0; row < (tail_k + 1) / 2; ++row)
        std::memcpy(tail.weights[row], from + row * kPanel * 2, sizeof(tail.weights[0]));
      tail.channel = channel;
    }
    return tail.weights[0];
  };

  const int64_t steps = whole + (tail_k ? 1 : 0), panel_end = block.panel_end * kPanel;
  const TileProduct product{rows,
                            block.panel_begin * kPanel,
                            panel_end < p.out_features ? panel_end : p.out_features,
                            kTileDepth * static_cast<int64_t>(sizeof(bf16)),
                            steps,
                            steps};
  tile_configure(product_tiles(product.tile_rows(), product.depth));
  multiply_by_tiles<float>(
      product,
      [&](const TileBlock& at, int64_t step) {
        if (step == 0 && at.channel % kPanel == 0)
          for (int64_t row : at.row)
            prepare(block.row_begin + row, product.tile_rows(), at.channel);
        if (step == whole) {
          multiply_tiles<float>(tail.x[at.row[0]], tail.x[at.row[1]], sizeof(tail.x[0]),
                                tail_weights_of(at.channel), sizeof(tail.weights[0]));
          return;
        }
        const bf16* x_step = x + step * kTileDepth;
        multiply_tiles<float>(x_step + at.row[0] * stride, x_step + at.row[1] * stride,
                              stride_bytes, weights_of(at.channel) + step * step_size);
        if (at.channel + kTileBlock < product.channel_end)
          at.prefetch(weights_of(at.channel + kTileBlock) + step * step_size);
      },
      [&](const TileSums<float>& sums, int64_t first, int64_t row, int64_t count) {
        const int64_t channel = sums.block.channel, left = product.channel_end - channel;
        finish(sums.sums + first * kTileBlock, kTileBlock, block.row_begin + row, count, channel,
               left < kTileBlock ? left : kTileBlock);
      });
  tile_release();
}

}  // namespace TAUT_ISA
}  // namespace taut
