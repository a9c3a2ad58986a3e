// Rows of numbers <-> packed signs, and LayerNorm of rows: one warp per row.
#pragma once
#include "cuda/binary_gemm_params.h"
#include "cuda/ptx/convert.h"

namespace taut {

constexpr int kRowThreads = 256;  // of the kernels that give a warp a row

// This warp's first row and the number of warps of the grid.
struct RowWalk {
  int64_t first, step;
};
__device__ __forceinline__ RowWalk row_walk() {
  const int per_block = kRowThreads / 32;
  return {int64_t{blockIdx.x} * per_block + threadIdx.x / 32, int64_t{gridDim.x} * per_block};
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    pack_bits_kernel(const __grid_constant__ PackBitsParams p) {
  constexpr int kWords = 4, kLoads = 2 * kWords;  // in flight at once
  const int lane = threadIdx.x % 32, words = words_of(p.columns);
  const RowWalk walk = row_walk();
  for (int64_t row = walk.first; row < p.rows; row += walk.step) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    uint64_t* out = p.out + row * p.rails * words;
    for (int first = 0; first < words; first += kWords) {
      float value[kLoads], limit[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int column = first * kBitsPerWord + i * 32 + lane;
        const bool exists = column < p.columns;
        value[i] = exists ? ptx::to_float(x[column]) : __uint_as_float(0x7fffffffu);  // no sign
        limit[i] = exists && p.threshold != nullptr ? p.threshold[column] : 0.0f;
      }
      // Lane w keeps word w.
      uint32_t above[2] = {0, 0}, below[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const bool is_above = p.at_least ? value[i] >= limit[i] : value[i] > limit[i];
        const uint32_t of_above = __ballot_sync(kAllLanes, is_above);
        const uint32_t of_below = __ballot_sync(kAllLanes, value[i] < limit[i]);
        if (lane == i / 2) {
          above[i % 2] = of_above;
          below[i % 2] = of_below;
        }
      }
      if (lane < kWords && first + lane < words) {
        out[first + lane] = word_of(above[0], above[1]);
        if (p.rails == 2) out[words + first + lane] = word_of(below[0], below[1]);
      }
    }
  }
}

__global__ void __launch_bounds__(kRowThreads)
    unpack_bits_kernel(const __grid_constant__ UnpackBitsParams p) {
  const RowWalk walk = row_walk();
  for (int64_t row = walk.first; row < p.rows; row += walk.step) {
    const uint64_t* bits = p.bits + row * p.bits_stride;
    for (int column = threadIdx.x % 32; column < p.columns; column += 32) {
      const uint64_t* word = bits + column / kBitsPerWord;
      const int shift = column % kBitsPerWord;
      const int positive = word[0] >> shift & 1;
      const int negative = p.rails == 2 ? word[p.rail_stride] >> shift & 1 : 1 - positive;
      p.out[row * p.columns + column] = static_cast<int8_t>(positive - negative);
    }
  }
}

__global__ void __launch_bounds__(kRowThreads)
    code_planes_kernel(const __grid_constant__ CodePlanesParams p) {
  const int lane = threadIdx.x % 32, words = words_of(p.columns);
  const RowWalk walk = row_walk();
  for (int64_t row = walk.first; row < p.rows; row += walk.step) {
    const int8_t* codes = p.codes + row * p.codes_stride;
    uint32_t* planes = reinterpret_cast<uint32_t*>(p.planes + row * kCodePlanes * words);
    uint32_t differ = 0;  // bits that are not the sign
    for (int half = 0; half < 2 * words; ++half) {
      const int column = half * 32 + lane;
      const int code = column < p.columns ? codes[column] : 0;
      differ |= code ^ code >> 31;
      uint32_t mine = 0;  // lane i keeps plane i
#pragma unroll
      for (int i = 0; i < kCodePlanes; ++i) {
        const uint32_t plane = __ballot_sync(kAllLanes, code >> i & 1);
        if (lane == i) mine = plane;
      }
      if (lane < kCodePlanes) planes[2 * lane * words + half] = mine;
    }
    for (int width = 16; width > 0; width /= 2) differ |= __shfl_xor_sync(kAllLanes, differ, width);
    const int highest = 32 - __clz(static_cast<int>(differ));
    if (lane == 0) p.highest[row] = highest > 1 ? highest : 1;
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    binary_norm_kernel(const __grid_constant__ BinaryNormParams p) {
  const int lane = threadIdx.x % 32, words = words_of(p.columns);
  const auto sum_lanes = [](float x) {
    for (int width = 16; width > 0; width /= 2) x += __shfl_xor_sync(kAllLanes, x, width);
    return x;
  };
  const RowWalk walk = row_walk();
  for (int64_t row = walk.first; row < p.rows; row += walk.step) {
    const float* x = p.x + row * p.columns;
    float sum = 0.0f, square = 0.0f;
    for (int c = lane; c < p.columns; c += 32) sum += x[c];
    const float mean = sum_lanes(sum) / p.columns;
    for (int c = lane; c < p.columns; c += 32) square += (x[c] - mean) * (x[c] - mean);
    const float rstd = 1.0f / sqrtf(sum_lanes(square) / p.columns + p.eps);
    uint32_t* bits = reinterpret_cast<uint32_t*>(p.bits + row * words);
    for (int half = 0; half < 2 * words; ++half) {
      const int c = half * 32 + lane;
      float value = 0.0f, limit = 0.0f;
      if (c < p.columns) {
        const float weight =
            p.weight == nullptr ? 1.0f : ptx::to_float(static_cast<const T*>(p.weight)[c]);
        const float bias =
            p.bias == nullptr ? 0.0f : ptx::to_float(static_cast<const T*>(p.bias)[c]);
        value = (x[c] - mean) * rstd * weight + bias;
        limit = p.threshold == nullptr ? 0.0f : p.threshold[c];
        static_cast<T*>(p.out)[row * p.columns + c] = ptx::from_float<T>(value);
      }
      const uint32_t above = __ballot_sync(kAllLanes, c < p.columns && value > limit);
      if (lane == 0) bits[half] = above;
    }
  }
}

}  // namespace taut
