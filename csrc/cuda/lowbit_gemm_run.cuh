// The body of lowbit_gemm.h, for lowbit_gemm_<bits>.cu to instantiate.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/lowbit_gemm.h"
#include "cuda/lowbit_gemm_launch.cuh"

namespace taut {

template <int bits>
const char* run_lowbit_linear(const LowbitParams& p, ScalarType x_dtype, LowbitDevice device,
                              cudaStream_t stream) {
  const GridLaunch launch{stream};
  if (x_dtype == ScalarType::Char) {
    const bool has_wgmma = kHasHopper && device.is_hopper;
    const LowbitTiles tiles =
        choose_tiles(p.rows, p.out_features, device.processors, least_columns(p), has_wgmma);
    if constexpr (kHasHopper) {
      if (has_wgmma && tiles == LowbitTiles::rows_128) {
        run_lowbit_wgmma<bits>(p, stream);
        return "native/hopper";
      }
    }
    launch_lowbit_linear<bits>(p, tiles, launch);
    return "native";
  }
  const int columns = choose_float_columns(p.rows, p.out_features, device.processors);
  if (x_dtype == ScalarType::BFloat16) {
    launch_lowbit_floats<bf16, bits>(p, columns, launch);
  } else {
    launch_lowbit_floats<f16, bits>(p, columns, launch);
  }
  return "native";
}

}  // namespace taut
