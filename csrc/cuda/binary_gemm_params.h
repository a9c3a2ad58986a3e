// What crosses from the launchers of packed signs and 1-bit linear layers to their kernels.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/types.h"
#include "cuda/device.h"

namespace taut {

constexpr int kBitsPerWord = 64;
constexpr int kCodePlanes = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ constexpr int words_of(int columns) {
  return (columns + kBitsPerWord - 1) / kBitsPerWord;
}

__host__ __device__ constexpr uint64_t word_of(uint32_t low, uint32_t high) {
  return uint64_t{high} << 32 | low;
}

// Rows of floats -> signs. Strides are in elements everywhere; `threshold` may be null.
struct PackBitsParams {
  const void* x;
  const float* threshold;
  uint64_t* out;  // (rows, rails, words)
  int64_t rows, x_stride;
  int32_t columns, rails;
  bool at_least;  // x = threshold counts as above
};

// Signs -> int8.
struct UnpackBitsParams {
  const uint64_t* bits;
  int8_t* out;  // (rows, columns)
  int64_t rows, bits_stride, rail_stride;
  int32_t columns, rails;
};

// Rows of int8 codes -> planes: bit i of every code, i = 0 ... 7.
struct CodePlanesParams {
  const int8_t* codes;
  uint64_t* planes;  // (rows, 8, words)
  int32_t* highest;  // per row: the planes above this one are copies of it; at least 1
  int64_t rows, codes_stride;
  int32_t columns;
};

enum class BinaryInput : int { one_rail, two_rails, codes };

// A null pointer means "not given".
struct BinaryLinearParams {
  BinaryInput input;
  const uint64_t* x;       // words of a plane are contiguous
  const int32_t* highest;  // codes: see CodePlanesParams
  const float* x_scale;    // one per row
  int64_t rows, x_stride, plane_stride;
  const uint64_t* packed;  // (panels, words, 64), aligned to 16 bytes
  int32_t in_features, out_features;
  // Bits come out where there are thresholds, otherwise floats.
  const int32_t* thresholds;  // (out_features,) for one rail, (3, out_features) for two
  int32_t rails;
  uint64_t* bits;  // (rows, rails, panels)
  const float* scale;
  const float* bias;
  Activation activation;
  FloatType residual_type, out_type;
  const void* residual;
  int64_t residual_stride;
  void* out;     // (rows, out_features)
  bool vectors;  // rows of residual and out, scale and bias may be read 4 elements at a time
};

// LayerNorm of fp32 rows, and its signs.
struct BinaryNormParams {
  const float* x;  // (rows, columns)
  FloatType type;  // of out, weight and bias
  const void* weight;
  const void* bias;
  const float* threshold;
  float eps;
  void* out;       // (rows, columns)
  uint64_t* bits;  // (rows, words)
  int64_t rows;
  int32_t columns;
};

}  // namespace taut
