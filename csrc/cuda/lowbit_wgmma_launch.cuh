// How the Hopper kernel is launched, for the launchers and for the host executor alike.
#pragma once
#include "cuda/lowbit_wgmma.cuh"

namespace taut {

template <int bits, class Launch>
void launch_lowbit_wgmma(const LowbitParams& p, const Launch& launch) {
  using Tile = LowbitWgmmaTile;
  const int64_t tiles = ((p.rows + Tile::kRows - 1) / Tile::kRows) *
                        ((p.out_features + Tile::kColumns - 1) / Tile::kColumns);
  launch("lowbit_wgmma", lowbit_wgmma_kernel<bits>, tiles, Tile::kThreads,
         LowbitWgmmaShared<bits>::kBytes, p);
}

}  // namespace taut
