// Which tile serves which shape. Results do not depend on it, to the bit: only the time does.
#pragma once
#include <cstdint>

namespace taut {

enum class LowbitTiles : int { rows_16, rows_64, rows_128 };

// Cycles that a multiprocessor takes per tile and 128 input features: an m16n8k32 product of int8
// is 8 cycles of a quarter of it (sm_80 and up), the rest is what loads, expansion and barriers
// add. On Hopper tiles of 128 rows are wgmma's, whose m64n128k32 is 64 cycles of the whole.
// Predicted, not measured.
struct LowbitTileCost {
  LowbitTiles tiles;
  int rows, columns, cycles, hopper_cycles;
};
constexpr LowbitTileCost kLowbitTileCosts[] = {
    {LowbitTiles::rows_16, 16, 64, 64 + 96, 64 + 96},
    {LowbitTiles::rows_64, 64, 64, 256 + 44, 256 + 44},
    {LowbitTiles::rows_128, 128, 128, 1024 + 76, 512 + 76},
};

// Cycles per 128 input features until all tiles are done: the multiprocessors (A100: 108, H100 and
// H200: 132) take them in rounds, and the last one may be nearly empty.
constexpr int64_t predicted_cycles(const LowbitTileCost& cost, int64_t rows, int64_t out_features,
                                   int processors, bool is_hopper) {
  const int64_t tiles =
      ((rows + cost.rows - 1) / cost.rows) * ((out_features + cost.columns - 1) / cost.columns);
  return (tiles + processors - 1) / processors * (is_hopper ? cost.hopper_cycles : cost.cycles);
}

// The quickest tile that holds `least_columns`.
constexpr LowbitTiles choose_tiles(int64_t rows, int64_t out_features, int processors,
                                   int least_columns, bool is_hopper) {
  LowbitTiles best = LowbitTiles::rows_128;
  int64_t least = INT64_MAX;
  for (const LowbitTileCost& cost : kLowbitTileCosts) {
    const int64_t cycles = predicted_cycles(cost, rows, out_features, processors, is_hopper);
    if (cost.columns < least_columns || cycles >= least) continue;
    best = cost.tiles;
    least = cycles;
  }
  return best;
}

// Columns of a tile of 32 rows of floating-point activations: halves of panels, where whole ones
// leave multiprocessors idle.
constexpr int choose_float_columns(int64_t rows, int64_t out_features, int processors) {
  const int64_t tiles = (rows + 31) / 32 * ((out_features + 63) / 64);
  return tiles < processors ? 32 : 64;
}

}  // namespace taut
