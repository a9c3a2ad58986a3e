// The integer product of low-bit linear layers by AMX tiles, over panels of 8 bits: narrower codes
// are expanded to such panels first, which stay in L2 while the rows of the call pass by.
#pragma once
#include "cpu/gemm_tiles.h"
#include "cpu/lowbit_gemm_integers.h"

namespace taut {
namespace TAUT_ISA {

static_assert(kIntegerBlock == kTileBlock && kRowBytes == kTileWeightStride &&
              kLowbitPanel == kPanelChannels);

// Input features of a k-step: a group is whole steps.
inline int64_t tile_depth(const LowbitParams& p) {
  return p.groups > 1 && p.group_units % 2 ? kLowbitUnit : kLowbitBlock;
}

// `rows` of x times `channels` channels of panels of codes. Calls take(sums, row, rows, channel)
// until every part had it, with rows of kTileBlock sums of all groups: int32 where they are scaled
// at once, else fp32; and prepare(row, rows, channel) some time before.
template <class Prepare, class Take>
void multiply_by_integer_tiles(const LowbitParams& p, const uint8_t* panels, const LowbitRows& x,
                               const PanelConstants* constants, int64_t rows, int64_t channels,
                               const Prepare& prepare, const Take& take) {
  TileProduct product{};
  product.x = reinterpret_cast<const char*>(x.codes);
  product.x_stride = p.codes_stride();
  product.rows = rows;
  product.panels = reinterpret_cast<const char*>(panels);
  product.panel_bytes = p.code_bytes();
  product.channel_end = channels;
  product.depth = tile_depth(p);
  product.steps = product.depth == kLowbitUnit ? p.units() : p.blocks();
  product.group_steps = p.groups > 1 ? p.group_units * kLowbitUnit / product.depth : product.steps;
  const auto no_tail = [](int64_t) -> const void* { return nullptr; };
  alignas(64) float totals[kTileBlock * kTileBlock];
  multiply_by_tiles<int32_t>(product, no_tail, prepare, [&](const TilePart<int32_t>& part) {
    const void* sums = part.sums;
    const PanelConstants& of_panel = constants[part.channel / kLowbitPanel];
    if (!scaled_at_once(p, of_panel)) {
      float* total = totals + part.first * kTileBlock;
      const IntegerTile tile{
          nullptr, x.from(p, part.row),         of_panel,  const_cast<int32_t*>(part.sums),
          total,   part.channel % kLowbitPanel, kTileBlock};
      add_group(p, tile, part.group, part.rows, 0, kTileBlock);
      if (part.group < p.groups - 1) return;
      sums = total;
    }
    take(sums, part.row, part.rows, part.channel);
  });
}

}  // namespace TAUT_ISA
}  // namespace taut
