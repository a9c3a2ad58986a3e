// Which kernel serves which weight and shape, for the launchers and for the host executor alike.
// `launch(name, kernel, blocks, threads, shared bytes, params)` runs a kernel.
#pragma once
#include "cuda/lowbit_floats.cuh"
#include "cuda/lowbit_gemm.cuh"
#include "cuda/lowbit_tiles.h"

namespace taut {

template <class Tile>
int64_t tiles_of(const LowbitParams& p) {
  return ((p.rows + Tile::kRows - 1) / Tile::kRows) *
         ((p.out_features + Tile::kColumns - 1) / Tile::kColumns);
}

template <class Tile, int bits, class Launch>
void launch_lowbit_tile(const LowbitParams& p, const Launch& launch) {
  launch("lowbit_linear",
         p.general() ? lowbit_linear_kernel<Tile, bits, true>
                     : lowbit_linear_kernel<Tile, bits, false>,
         tiles_of<Tile>(p), Tile::kThreads, LowbitShared<Tile, bits>::kBytes, p);
}

template <int bits, class Launch>
void launch_lowbit_linear(const LowbitParams& p, LowbitTiles tiles, const Launch& launch) {
  switch (tiles) {
    case LowbitTiles::rows_16:
      return launch_lowbit_tile<LowbitTile<16, 64, 16, 16>, bits>(p, launch);
    case LowbitTiles::rows_64:
      return launch_lowbit_tile<LowbitTile<64, 64, 32, 32>, bits>(p, launch);
    case LowbitTiles::rows_128:
      return launch_lowbit_tile<LowbitTile<128, 128, 64, 32>, bits>(p, launch);
  }
}

// The columns of a tile that quantizes its result hold whole groups.
inline int least_columns(const LowbitParams& p) { return p.q ? p.q_group_size : 1; }

template <class T, int bits, class Launch>
void launch_lowbit_floats(const LowbitParams& p, int columns, const Launch& launch) {
  const auto run = [&](auto tile) {
    using Tile = decltype(tile);
    launch("lowbit_floats", lowbit_floats_kernel<T, Tile, bits>, tiles_of<Tile>(p), Tile::kThreads,
           LowbitFloatShared<Tile, bits>::kBytes, p);
  };
  if (columns == 32) return run(LowbitFloatTile<32>{});
  run(LowbitFloatTile<64>{});
}

}  // namespace taut
