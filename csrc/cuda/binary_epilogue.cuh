// 1-bit linear layers behind the sums: 16 rows of a warp's panel lie in shared memory, S::kSumPitch
// apart, and become floats or bits.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/binary_gemm_params.h"
#include "cuda/ptx/convert.h"

namespace taut {

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

// What products of AND and of XOR are multiplied by: see binary_gemm.cuh.
__device__ __forceinline__ int and_factor(BinaryInput input) {
  return input == BinaryInput::one_rail ? 4 : 2;
}
__device__ __forceinline__ int xor_factor(BinaryInput input) {
  return input == BinaryInput::one_rail ? -2 : input == BinaryInput::codes ? -1 : 1;
}

// What is true of all rows of a warp: its panel, of whose channels `columns` says what to take
// away.
struct BinarySlice {
  int factor, row_factor;
  const int32_t* columns;
  int panel, first_channel;

  __device__ __forceinline__ BinarySlice(const BinaryLinearParams& p, int factor, int panel,
                                         const int32_t* columns)
      : factor(factor),
        row_factor(p.input == BinaryInput::one_rail ? 2 : 1),
        columns(columns),
        panel(panel),
        first_channel(panel * kBitsPerWord) {}
};

// Half a warp per row, four channels per lane. `row_counts` are those of the 16 rows.
template <class S>
__device__ __forceinline__ void store_floats(const BinaryLinearParams& p, const BinarySlice& slice,
                                             const int32_t* of_rows, const int32_t* row_counts,
                                             int64_t first_row) {
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
    const int4 sums = *reinterpret_cast<const int4*>(of_rows + r * S::kSumPitch + within);
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
                                           const int32_t* of_rows, const int32_t* row_counts,
                                           int64_t first_row) {
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
    const int32_t* sums = of_rows + r * S::kSumPitch + lane;
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

// The 16 rows from first_row on of a warp's panel.
template <class S>
__device__ __forceinline__ void store_slice(const BinaryLinearParams& p, const BinarySlice& slice,
                                            const int32_t* of_rows, const int32_t* row_counts,
                                            int64_t first_row) {
  if (p.thresholds != nullptr) {
    store_bits<S>(p, slice, of_rows, row_counts, first_row);
  } else {
    store_floats<S>(p, slice, of_rows, row_counts, first_row);
  }
}

}  // namespace taut
