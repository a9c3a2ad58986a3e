// The matrix product of bf16 packed linear layers by AMX tiles.
#pragma once
#include "cpu/dense_gemm.h"
#include "cpu/gemm_tiles.h"
#include "cpu/panels.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kTileDepth = 32;  // k per tile of x

// The k behind the last whole tile, padded with zeros: nothing behind a row or panel is read.
struct Tail {
  alignas(64) bf16 x[kMaxGemmRows][kTileDepth];
  alignas(64) bf16 weights[kTile][kTileBlock * 2];
};

// Calls finish(sums, stride, row, rows, channel, channels) until every part of the block had it.
template <class Prepare, class Finish>
void multiply_bf16_by_tiles(const GemmParams& p, const GemmBlock& block, const Prepare& prepare,
                            const Finish& finish) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t whole = p.in_features / kTileDepth, tail_k = p.in_features % kTileDepth;
  constexpr int64_t kBytes = sizeof(bf16);
  const bf16* x = static_cast<const bf16*>(p.x) + block.row_begin * p.x_stride;
  const int64_t panel_end = block.panel_end * kPanel;

  Tail tail;
  TileProduct product{};
  product.x = reinterpret_cast<const char*>(x);
  product.x_stride = p.x_stride * kBytes;
  product.rows = rows;
  product.panels = static_cast<const char*>(p.packed);
  product.panel_bytes = (p.in_features + 1) / 2 * 2 * kPanel * kBytes;
  product.depth = kTileDepth * kBytes;
  product.steps = product.group_steps = whole + (tail_k ? 1 : 0);
  if (tail_k) {
    std::memset(tail.x, 0, static_cast<size_t>(rows) * sizeof(tail.x[0]));
    std::memset(tail.weights, 0, sizeof(tail.weights));
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(tail.x[r], x + r * p.x_stride + whole * kTileDepth,
                  static_cast<size_t>(tail_k * kBytes));
    product.x_tail = reinterpret_cast<const char*>(tail.x);
  }
  const auto tail_weights = [&](int64_t channel) {
    const char* from = product.weights(channel) + whole * product.step_bytes();
    for (int64_t row = 0; row < (tail_k + 1) / 2; ++row)
      std::memcpy(tail.weights[row], from + row * kTileWeightStride, sizeof(tail.weights[0]));
    return tail.weights[0];
  };

  tile_configure(product_tiles(product.tile_rows(), product.depth));
  const int64_t end = panel_end < p.out_features ? panel_end : p.out_features;
  const int64_t together = panels_together(product.panel_bytes) * kPanel;
  for (int64_t channel = block.panel_begin * kPanel; channel < end; channel += together) {
    product.channel_begin = channel;
    product.channel_end = channel + together < end ? channel + together : end;
    multiply_by_tiles<float>(
        product, tail_weights,
        [&](int64_t row, int64_t count, int64_t at) {
          if (at % kPanel == 0) prepare(block.row_begin + row, count, at);
        },
        [&](const TilePart<float>& part) {
          const int64_t left = end - part.channel;
          finish(part.sums, kTileBlock, block.row_begin + part.row, part.rows, part.channel,
                 left < kTileBlock ? left : kTileBlock);
        });
  }
  tile_release();
}

}  // namespace TAUT_ISA
}  // namespace taut
