// The body of lowbit_gemm.h, for lowbit_gemm_<bits>.cu to instantiate.
#pragma once
#include "cuda/grid_launch.cuh"
#include "cuda/lowbit_gemm.h"
#include "cuda/lowbit_gemm_launch.cuh"

namespace taut {

template <int bits>
void run_lowbit_linear(const LowbitParams& p, int processors, cudaStream_t stream) {
  const LowbitTiles tiles = choose_tiles(p.rows, p.out_features, processors, least_columns(p));
  launch_lowbit_linear<bits>(p, tiles, GridLaunch{stream});
}

}  // namespace taut
