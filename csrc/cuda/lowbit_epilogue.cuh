// What follows the sums of a tile, whatever they are sums of.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/lowbit_gemm_params.h"
#include "cuda/ptx/convert.h"
#include "cuda/quantize_codes.cuh"

namespace taut {

__device__ __forceinline__ float load_float(const void* data, int64_t i, FloatType type) {
  switch (type) {
    case FloatType::f32: return static_cast<const float*>(data)[i];
    case FloatType::bf16: return ptx::to_float(static_cast<const bf16*>(data)[i]);
    default: return ptx::to_float(static_cast<const f16*>(data)[i]);
  }
}
__device__ __forceinline__ void store_float(void* data, int64_t i, FloatType type, float value) {
  switch (type) {
    case FloatType::f32: static_cast<float*>(data)[i] = value; break;
    case FloatType::bf16: static_cast<bf16*>(data)[i] = ptx::from_float<bf16>(value); break;
    default: static_cast<f16*>(data)[i] = ptx::from_float<f16>(value);
  }
}

// The tile's totals to bias, activation and residual, then to memory. A warp takes whole rows, a
// lane every 32nd column: 32 columns are the least that are quantized together.
template <class Tile>
__device__ __forceinline__ void lowbit_epilogue(const LowbitParams& p, int64_t first_row,
                                                int first_column, const float* tile) {
  constexpr int kRuns = Tile::kColumns / 32;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  float bias[kRuns];
#pragma unroll
  for (int i = 0; i < kRuns; ++i) {
    const int column = first_column + 32 * i + lane;
    bias[i] = p.bias && column < p.out_features ? load_float(p.bias, column, p.bias_type) : 0.0f;
  }
  for (int r = warp; r < Tile::kRows && first_row + r < p.rows; r += Tile::kWarps) {
    const int64_t row = first_row + r;
    float values[kRuns];
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const int column = first_column + 32 * i + lane;
      float value = tile[r * Tile::kTotalStride + 32 * i + lane];
      if (p.bias) value = __fadd_rn(value, bias[i]);
      value = activate(value, p.activation);
      values[i] = value;
      if (p.q || column >= p.out_features) continue;
      if (p.residual) {
        const int64_t place = row * p.residual_stride + column;
        value = __fadd_rn(value, load_float(p.residual, place, p.residual_type));
      }
      store_float(p.out, row * p.out_features + column, p.out_type, value);
    }
    if (!p.q) continue;
    int most[kRuns];
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const bool exists = first_column + 32 * i + lane < p.out_features;
      most[i] = warp_max(exists ? magnitude_bits(values[i]) : 0);
    }
#pragma unroll
    for (int runs = 1; runs < kRuns; runs *= 2) {
      if (32 * runs >= p.q_group_size) break;
#pragma unroll
      for (int i = 0; i < kRuns; ++i) {
        if (i & runs) continue;
        most[i] = most[i + runs] = max(most[i], most[i + runs]);
      }
    }
    const int half = 1 << (p.q_bits - 1);
    const int groups = (p.out_features + p.q_group_size - 1) / p.q_group_size;
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const int column = first_column + 32 * i + lane;
      if (column >= p.out_features) continue;
      const AbsmaxCodes code(most[i], static_cast<float>(half - 1), half);
      p.q[row * p.out_features + column] = static_cast<int8_t>(code(values[i]));
      if (column % p.q_group_size == 0)
        p.q_scale[row * groups + column / p.q_group_size] = code.scale;
    }
  }
}

}  // namespace taut
