// The integer product of low-bit linear layers by AMX tiles, over panels of 8 bits: narrower codes
// are expanded to such a panel first, which stays in L2 while the rows of the call pass by.
#pragma once
#include "cpu/gemm_tiles.h"
#include "cpu/lowbit_gemm_integers.h"

namespace taut {
namespace TAUT_ISA {

static_assert(kIntegerBlock == kTileBlock && kRowBytes == kTileWeightStride);

// Input features of a k-step: a group is whole steps.
inline int64_t tile_depth(const LowbitParams& p) {
  return p.groups > 1 && p.group_units % 2 ? kLowbitUnit : kLowbitBlock;
}

// `rows` of x times a panel of which so many channels count. Calls take(sums, row, rows, channel,
// channels) until every part had it, with rows of kTileBlock sums of all groups: int32 where they are
// scaled at once, else fp32; and prepare(row, rows, channel) some time before. next: the panel that
// follows, or null.
template <class Prepare, class Take>
void multiply_by_integer_tiles(const LowbitParams& p, const uint8_t* panel, const uint8_t* next,
                               const LowbitRows& x, const PanelConstants& constants, int64_t rows,
                               int64_t channels, const Prepare& prepare, const Take& take) {
  const int64_t depth = tile_depth(p), stride = p.codes_stride();
  const int64_t steps = depth == kLowbitUnit ? p.units() : p.blocks();
  const int64_t step_size = depth / 4 * kRowBytes;
  const int64_t group_steps = p.groups > 1 ? p.group_units * kLowbitUnit / depth : steps;
  const TileProduct product{rows, 0, channels, depth, steps, group_steps};
  const bool at_once = scaled_at_once(p, constants);
  alignas(64) float totals[kTileBlock * kTileBlock];
  multiply_by_tiles<int32_t>(
      product,
      [&](const TileBlock& at, int64_t step) {
        if (step == 0)
          for (int64_t row : at.row) prepare(row, kTile, at.channel);
        const int8_t* codes = x.codes + step * depth;
        multiply_tiles<int32_t>(codes + at.row[0] * stride, codes + at.row[1] * stride, stride,
                                panel + step * step_size + 4 * at.channel);
        const uint8_t* following =
            at.channel + kTileBlock < channels ? panel + 4 * (at.channel + kTileBlock) : next;
        if (following) at.prefetch(following + step * step_size);
      },
      [&](const TileSums<int32_t>& sums, int64_t first, int64_t row, int64_t count) {
        const int64_t channel = sums.block.channel, left = channels - channel;
        const int64_t place = first * kTileBlock;
        const void* done = sums.sums + place;
        if (!at_once) {
          const IntegerTile tile{panel,          x.from(p, row), constants, sums.sums + place,
                                 totals + place, channel,        kTileBlock};
          add_group(p, tile, sums.group, count, 0, kTileBlock);
          if (sums.group < p.groups - 1) return;
          done = totals + place;
        }
        take(done, row, count, channel, left < kTileBlock ? left : kTileBlock);
      });
}

}  // namespace TAUT_ISA
}  // namespace taut
