// What a row's or a group's largest magnitude makes of its values, to the bit as
// reference/quantize.py defines it ("absmax" and "full_range" grids), and sums over a warp.
#pragma once
#include "cuda/device.h"

namespace taut {

// Lanes in a fixed tree: the same bits in every run.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}
__device__ __forceinline__ int warp_max(int x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  return x;
}

// Magnitudes sort as their bits do, infinity and NaN on top.
constexpr int kInfinityBits = 0x7f800000;
__device__ __forceinline__ int magnitude_bits(float x) { return __float_as_int(fabsf(x)); }

struct AbsmaxCodes {
  float scale;  // NaN where something is not finite
  float inverse;
  bool finite;
  int half;  // codes are in [-half, half)

  // `most`: the largest magnitude_bits. The scale is the magnitude over `top`.
  __device__ __forceinline__ AbsmaxCodes(int most, float top, int half)
      : finite(most < kInfinityBits), half(half) {
    const float absmax = __int_as_float(finite ? most : 0);
    scale = finite ? absmax / top : __int_as_float(0x7fc00000);
    inverse = top / fmaxf(absmax, 1e-36f);  // SMALLEST of the reference
  }
  __device__ __forceinline__ int operator()(float x) const {
    if (!finite) return 0;
    return min(max(__float2int_rn(__fmul_rn(x, inverse)), -half), half - 1);
  }
};

}  // namespace taut
