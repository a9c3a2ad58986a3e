// 1-bit linear layers behind the sums: tiles, and sums -> floats or bits; LayerNorm of their rows.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/binary_bits.cuh"

namespace taut {

template <int M_>
struct BinaryTile {
  static constexpr int M = M_;
  static constexpr int kRows = 32 * M, kPanels = 2, kChannels = kPanels * kBitsPerWord;
  static constexpr int kThreads = 128, kGroups = kBitsPerWord / 16;
  static constexpr int kStages = 4, kStepWords = 4;
  // Rows of words lie 32 bytes apart, words of channels 32 bytes more than a multiple of 128, so
  // that the four words t and the rows g of a load lie in different banks.
  static constexpr int kChannelPitch = kBitsPerWord + 4;
  static constexpr int kRowWords = kRows * kStepWords;
  static constexpr int kStageWords = kRowWords + kPanels * kStepWords * kChannelPitch;
  // Behind the products: 16 rows of sums of each warp.
  static constexpr int kSumPitch = kBitsPerWord + 16;
  static constexpr int kSharedBytes = kStages * kStageWords * 8 + (kRows + kChannels) * 4;
  static_assert(kStages * kStageWords * 8 >= kThreads / 32 * 16 * kSumPitch * 4,
                "sums fit where the stages were");
  static_assert(kRows <= kThreads && kChannels <= kThreads, "a thread counts a row and a channel");
};

// Which part of the product a block computes, and how far it has come.
struct BinaryBlock {
  int64_t first_row;
  int first_panel;
  int words, planes;
};

// ---- from sums to results: 16 rows of a warp's panel lie in shared memory

template <class T>
__device__ __forceinline__ void read_floats(float (&x)[4], const void* data, int64_t offset,
                                            int count, bool vectors) {
  const T* from = static_cast<const T*>(data) + offset;
  if (vectors && count == 4) {
    T loaded[4];
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<uint4*>(loaded) = *reinterpret_cast<const uint4*>(from);
    } else {
      *reinterpret_cast<uint2*>(loaded) = *reinterpret_cast<const uint2*>(from);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = ptx::to_float(loaded[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = i < count ? ptx::to_float(from[i]) : 0.0f;
  }
}

template <class T>
__device__ __forceinline__ void write_floats(const float (&x)[4], void* data, int64_t offset,
                                             int count, bool vectors) {
  T* to = static_cast<T*>(data) + offset;
  T rounded[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) rounded[i] = ptx::from_float<T>(x[i]);
  if (vectors && count == 4) {
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(rounded);
    } else {
      *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(rounded);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) to[i] = rounded[i];
  }
}

template <class Body>
__device__ __forceinline__ void with_type(FloatType type, const Body& body) {
  switch (type) {
    case FloatType::f32: return body(float{});
    case FloatType::bf16: return body(bf16{});
    case FloatType::f16: return body(f16{});
  }
}

// What is true of all rows of a warp.
struct BinarySlice {
  int factor, row_factor;
  const int32_t* sums;     // 16 rows, kSumPitch apart
  const int32_t* columns;  // of the panel's channels: what to take away
  int panel, first_channel;
};

// Half a warp per row, four channels per lane. `row_counts` are those of the 16 rows.
template <class S>
__device__ __forceinline__ void store_floats(const BinaryLinearParams& p, const BinarySlice& slice,
                                             const int32_t* row_counts, int64_t first_row) {
  const int lane = threadIdx.x % 32, within = lane % 16 * 4;
  const int channel = slice.first_channel + within;
  const int count = p.out_features - channel < 4 ? p.out_features - channel : 4;
  if (count <= 0) return;
  float scale[4], bias[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  read_floats<float>(scale, p.scale, channel, count, p.vectors);
  if (p.bias != nullptr) read_floats<float>(bias, p.bias, channel, count, p.vectors);
#pragma unroll 1
  for (int r = lane / 16; r < 16 && first_row + r < p.rows; r += 2) {
    const int64_t row = first_row + r;
    const float row_scale = p.x_scale == nullptr ? 1.0f : p.x_scale[row];
    const int4 sums = *reinterpret_cast<const int4*>(slice.sums + r * S::kSumPitch + within);
    const int32_t raw[4] = {sums.x, sums.y, sums.z, sums.w};
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t sum =
          slice.factor * raw[i] - slice.row_factor * row_counts[r] - slice.columns[within + i];
      x[i] = activate(static_cast<float>(sum) * (row_scale * scale[i]) + bias[i], p.activation);
    }
    if (p.residual != nullptr) {
      with_type(p.residual_type, [&](auto type) {
        float residual[4];
        read_floats<decltype(type)>(residual, p.residual, row * p.residual_stride + channel, count,
                                    p.vectors);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] += residual[i];
      });
    }
    with_type(p.out_type, [&](auto type) {
      write_floats<decltype(type)>(x, p.out, row * p.out_features + channel, count, p.vectors);
    });
  }
}

// A warp per row, lane l compares channels l and l + 32: a panel is a word of the result.
template <class S>
__device__ __forceinline__ void store_bits(const BinaryLinearParams& p, const BinarySlice& slice,
                                           const int32_t* row_counts, int64_t first_row) {
  const int lane = threadIdx.x % 32, panels = words_of(p.out_features);
  int32_t above[2], low[2], high[2], column[2];
  bool exists[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int within = lane + 32 * i, channel = slice.first_channel + within;
    exists[i] = channel < p.out_features;
    const int32_t* thresholds = p.thresholds + (exists[i] ? channel : 0);
    above[i] = thresholds[0];
    low[i] = p.rails == 2 ? thresholds[p.out_features] : 0;
    high[i] = p.rails == 2 ? thresholds[2 * int64_t{p.out_features}] : 0;
    column[i] = slice.columns[within];
  }
  uint64_t positive = 0, negative = 0;  // lane r keeps those of row r
#pragma unroll 1
  for (int r = 0; r < 16; ++r) {
    const int32_t* sums = slice.sums + r * S::kSumPitch + lane;
    uint32_t is_above[2], is_below[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t sum =
          slice.factor * sums[32 * i] - slice.row_factor * row_counts[r] - column[i];
      is_above[i] = __ballot_sync(kAllLanes, exists[i] && sum > above[i]);
      is_below[i] = __ballot_sync(kAllLanes, exists[i] && sum > low[i] && sum < high[i]);
    }
    if (lane == r) {
      positive = word_of(is_above[0], is_above[1]);
      negative = word_of(is_below[0], is_below[1]);
    }
  }
  if (lane < 16 && first_row + lane < p.rows && slice.panel < panels) {
    uint64_t* out = p.bits + (first_row + lane) * p.rails * panels + slice.panel;
    out[0] = positive;
    if (p.rails == 2) out[panels] = negative;
  }
}

template <class S>
__device__ __forceinline__ void store_results(const BinaryLinearParams& p, const BinaryBlock& block,
                                              const int32_t (&acc)[S::M][2 * S::kGroups][4]) {
  int32_t* shared = reinterpret_cast<int32_t*>(dynamic_shared());
  const int32_t* row_counts = shared + 2 * S::kStages * S::kStageWords;
  const int32_t* columns = row_counts + S::kRows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const bool one_rail = p.input == BinaryInput::one_rail;
  const int warp_panel = warp % S::kPanels, warp_row = warp / S::kPanels * 16 * S::M;
  int32_t* sums = shared + warp * 16 * S::kSumPitch;
  const BinarySlice slice{one_rail ? 4 : 2,
                          one_rail ? 2 : 1,
                          sums,
                          columns + warp_panel * kBitsPerWord,
                          block.first_panel + warp_panel,
                          (block.first_panel + warp_panel) * kBitsPerWord};
#pragma unroll 1  // one copy of what follows the sums
  for (int m = 0; m < S::M; ++m) {
#pragma unroll
    for (int i = 0; i < S::M; ++i) {
      if (i != m) continue;
#pragma unroll
      for (int j = 0; j < S::kGroups; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int32_t (&first)[4] = acc[i][2 * j], (&second)[4] = acc[i][2 * j + 1];
          *reinterpret_cast<int4*>(sums + (g + 8 * h) * S::kSumPitch + j * 16 + 4 * t) =
              make_int4(first[2 * h], second[2 * h], first[2 * h + 1], second[2 * h + 1]);
        }
      }
    }
    __syncwarp();
    const int row = warp_row + m * 16;
    if (p.thresholds != nullptr) {
      store_bits<S>(p, slice, row_counts + row, block.first_row + row);
    } else {
      store_floats<S>(p, slice, row_counts + row, block.first_row + row);
    }
    __syncwarp();
  }
}

// ---- LayerNorm

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
