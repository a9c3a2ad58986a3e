// The body of lowbit_gemm.h, for lowbit_gemm_<bits>.cu to instantiate.
#pragma once
#include "cuda/grid_launch.cuh"
#include "cuda/lowbit_gemm.h"
#include "cuda/lowbit_gemm_launch.cuh"

namespace taut {

template <int bits>
void run_lowbit_linear(const LowbitParams& p, ScalarType x_dtype, int processors,
                       cudaStream_t stream) {
  const GridLaunch launch{stream};
  if (x_dtype == ScalarType::Char) {
    const LowbitTiles tiles = choose_tiles(p.rows, p.out_features, processors, least_columns(p));
    return launch_lowbit_linear<bits>(p, tiles, launch);
  }
  const int columns = choose_float_columns(p.rows, p.out_features, processors);
  if (x_dtype == ScalarType::BFloat16) return launch_lowbit_floats<bf16, bits>(p, columns, launch);
  launch_lowbit_floats<f16, bits>(p, columns, launch);
}

}  // namespace taut
