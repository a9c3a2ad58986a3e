// Rows to int8, and LayerNorm to int8: a warp takes a row, which it keeps in shared memory in fp32.
// A lane reads what other lanes wrote only behind __syncwarp. Rows are read 8 elements at a time
// where they lie at multiples of 16 bytes; what is summed is summed from shared memory, so that its
// order, and with it a row's bits, does not depend on where the row lies.
#pragma once
#include "cuda/ptx/convert.h"
#include "cuda/quantize_codes.cuh"
#include "cuda/quantize_params.h"

namespace taut {

// Floats from one warp's row to the next, whole 16-byte pieces.
__host__ __device__ constexpr int quantize_row_floats(int columns) { return (columns + 3) / 4 * 4; }

// This warp's place in shared memory, and its row.
struct WarpRow {
  float* values;
  int64_t row;
  int lane;

  __device__ __forceinline__ explicit WarpRow(int columns)
      : lane(static_cast<int>(threadIdx.x % 32)) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    row = int64_t{blockIdx.x} * (blockDim.x / 32) + warp;
    values = reinterpret_cast<float*>(dynamic_shared()) + warp * quantize_row_floats(columns);
  }
};

template <class T>
__device__ __forceinline__ float load_or(const void* vector, int c, float absent) {
  return vector ? ptx::to_float(static_cast<const T*>(vector)[c]) : absent;
}

constexpr int kRunElements = 8;  // that a lane reads at once

// The columns of whole runs where all of these may be read that way; null pointers may.
template <class... Pointers>
__device__ __forceinline__ int run_columns(int columns, Pointers... pointers) {
  const bool aligned = ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
  return aligned ? columns / kRunElements * kRunElements : 0;
}

template <class T>
__device__ __forceinline__ void read_run(float (&run)[kRunElements], const T* from) {
  constexpr int kPieces = kRunElements * sizeof(T) / 16;
  alignas(16) T loaded[kRunElements];
#pragma unroll
  for (int i = 0; i < kPieces; ++i)
    reinterpret_cast<uint4*>(loaded)[i] = reinterpret_cast<const uint4*>(from)[i];
#pragma unroll
  for (int i = 0; i < kRunElements; ++i) run[i] = ptx::to_float(loaded[i]);
}

__device__ __forceinline__ void keep_run(float* values, const float (&run)[kRunElements]) {
  float4* place = reinterpret_cast<float4*>(values);
  place[0] = make_float4(run[0], run[1], run[2], run[3]);
  place[1] = make_float4(run[4], run[5], run[6], run[7]);
}

// Times the Hadamard matrix of each block of 128 columns over sqrt(128): butterflies of ascending
// strides, of which a lane's four neighbours hold the first two.
__device__ __forceinline__ void hadamard_blocks(float* values, int columns, int lane) {
  for (int block = 0; block < columns; block += static_cast<int>(kHadamard)) {
    float4* place = reinterpret_cast<float4*>(values + block) + lane;
    const float4 x = *place;
    const float a = x.x + x.y, b = x.x - x.y, c = x.z + x.w, d = x.z - x.w;
    float v[4] = {a + c, b + d, a - c, b - d};
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float other = __shfl_xor_sync(0xffffffffu, v[i], lanes);
        v[i] = lane & lanes ? other - v[i] : v[i] + other;
      }
    }
    constexpr float kScale = 0.08838834764831845f;
    *place = make_float4(v[0] * kScale, v[1] * kScale, v[2] * kScale, v[3] * kScale);
  }
}

// Codes and scale of `count` values on the absmax and full-range grids.
__device__ __forceinline__ void quantize_values(const float* values, int count, int bits, float top,
                                                int8_t* q, float* scale, int lane) {
  int most = 0;
  for (int c = lane; c < count; c += 32) most = max(most, magnitude_bits(values[c]));
  const AbsmaxCodes code(warp_max(most), top, 1 << (bits - 1));
  for (int c = lane; c < count; c += 32) q[c] = static_cast<int8_t>(code(values[c]));
  if (lane == 0) *scale = code.scale;
}

// The same on the grid of x ~ (code + 1/2) scale.
__device__ __forceinline__ void quantize_midrise(const float* values, int count, int bits,
                                                 float step, int8_t* q, float* scale, int lane) {
  int most = 0;
  float squares = 0.0f;
  for (int c = lane; c < count; c += 32) {
    most = max(most, magnitude_bits(values[c]));
    squares += values[c] * values[c];
  }
  const bool finite = warp_max(most) < kInfinityBits;
  const float rms = sqrtf(warp_sum(squares) / static_cast<float>(count));
  const float own = __fadd_rn(__fmul_rn(rms, step), 1e-8f);
  const float half = static_cast<float>(1 << (bits - 1));
  for (int c = lane; c < count; c += 32) {
    const float level = fminf(fmaxf(floorf(values[c] / own), -half), half - 1.0f);
    q[c] = static_cast<int8_t>(finite ? level : 0.0f);
  }
  if (lane == 0) *scale = finite ? own : __int_as_float(0x7fc00000);
}

template <class T>
__global__ void quantize_kernel(const __grid_constant__ QuantizeParams p) {
  const WarpRow w(p.columns);
  if (w.row >= p.rows) return;
  const T* x = static_cast<const T*>(p.x) + w.row * p.x_stride;
  const int whole = run_columns(p.columns, x, p.channel_shift, p.channel_scale);
  for (int c = w.lane * kRunElements; c < whole; c += 32 * kRunElements) {
    float run[kRunElements], of_channels[kRunElements];
    read_run(run, x + c);
    if (p.channel_shift) {
      read_run(of_channels, p.channel_shift + c);
#pragma unroll
      for (int i = 0; i < kRunElements; ++i) run[i] = run[i] - of_channels[i];
    }
    if (p.channel_scale) {
      read_run(of_channels, p.channel_scale + c);
#pragma unroll
      for (int i = 0; i < kRunElements; ++i) run[i] = __fmul_rn(run[i], of_channels[i]);
    }
    keep_run(w.values + c, run);
  }
  for (int c = whole + w.lane; c < p.columns; c += 32) {
    float value = ptx::to_float(x[c]);
    if (p.channel_shift) value = value - p.channel_shift[c];
    if (p.channel_scale) value = __fmul_rn(value, p.channel_scale[c]);
    w.values[c] = value;
  }
  __syncwarp();
  if (p.hadamard) {
    hadamard_blocks(w.values, p.columns, w.lane);
    __syncwarp();
  }
  const int half = 1 << (p.bits - 1);
  const float top = static_cast<float>(p.grid == QuantizeGrid::full_range ? half : half - 1);
  for (int g = 0; g < p.groups; ++g) {
    const int begin = g * p.group_size, count = min(p.group_size, p.columns - begin);
    int8_t* q = p.q + w.row * p.q_stride + begin;
    float* scale = p.scale + w.row * p.groups + g;
    if (p.grid == QuantizeGrid::midrise) {
      quantize_midrise(w.values + begin, count, p.bits, p.midrise_step, q, scale, w.lane);
    } else {
      quantize_values(w.values + begin, count, p.bits, top, q, scale, w.lane);
    }
  }
}

// Behind the sum every lane reads back only what it wrote itself.
template <class X, class T>
__global__ void norm_quantize_kernel(const __grid_constant__ NormQuantizeParams p) {
  const WarpRow w(p.columns);
  if (w.row >= p.rows) return;
  const X* x = static_cast<const X*>(p.x) + w.row * p.x_stride;
  const T* residual =
      p.residual ? static_cast<const T*>(p.residual) + w.row * p.residual_stride : nullptr;
  const T* bias = static_cast<const T*>(p.bias);
  const int whole = run_columns(p.columns, x, bias, residual);
  for (int c = w.lane * kRunElements; c < whole; c += 32 * kRunElements) {
    float run[kRunElements], more[kRunElements];
    read_run(run, x + c);
    for (const T* added : {bias, residual}) {
      if (!added) continue;
      read_run(more, added + c);
#pragma unroll
      for (int i = 0; i < kRunElements; ++i) run[i] += more[i];
    }
    keep_run(w.values + c, run);
  }
  for (int c = whole + w.lane; c < p.columns; c += 32) {
    float value = ptx::to_float(x[c]);
    if (bias) value += ptx::to_float(bias[c]);
    if (residual) value += ptx::to_float(residual[c]);
    w.values[c] = value;
  }
  __syncwarp();
  float sum = 0.0f;
  for (int c = w.lane; c < p.columns; c += 32) sum += w.values[c];
  const float mean = warp_sum(sum) / static_cast<float>(p.columns);
  float squares = 0.0f;
  for (int c = w.lane; c < p.columns; c += 32) {
    const float centred = w.values[c] - mean;
    squares += centred * centred;
  }
  const float variance = warp_sum(squares) / static_cast<float>(p.columns);
  const float rstd = 1.0f / sqrtf(variance + p.eps);
  T* out = static_cast<T*>(p.out) + w.row * p.columns;
  for (int c = w.lane; c < p.columns; c += 32) {
    const float normalized = (w.values[c] - mean) * rstd;
    float value = normalized * load_or<T>(p.weight, c, 1.0f) + load_or<T>(p.norm_bias, c, 0.0f);
    out[c] = ptx::from_float<T>(value);
    if (p.own_affine)
      value = normalized * load_or<T>(p.quant_weight, c, 1.0f) + load_or<T>(p.quant_bias, c, 0.0f);
    w.values[c] = value;
  }
  if (!p.q) return;
  const float top = static_cast<float>((1 << (p.bits - 1)) - 1);
  quantize_values(w.values, p.columns, p.bits, top, p.q + w.row * p.columns, p.scale + w.row,
                  w.lane);
}

// launch(name, kernel, blocks, threads, shared bytes, params) runs a kernel. Rows share a block as
// long as they fit `shared_bytes`.
template <class Params, class Launch>
void launch_rows(const char* name, void (*kernel)(Params), const Params& p, int shared_bytes,
                 const Launch& launch) {
  const int row_bytes = 4 * quantize_row_floats(p.columns);
  constexpr int kMostWarps = 4;
  const int fitting = shared_bytes / row_bytes;
  const int warps = fitting < kMostWarps ? fitting : kMostWarps;
  launch(name, kernel, (p.rows + warps - 1) / warps, 32 * warps, warps * row_bytes, p);
}

template <class T, class Launch>
void launch_quantize(const QuantizeParams& p, int shared_bytes, const Launch& launch) {
  launch_rows("quantize", quantize_kernel<T>, p, shared_bytes, launch);
}
template <class X, class T, class Launch>
void launch_norm_quantize(const NormQuantizeParams& p, int shared_bytes, const Launch& launch) {
  launch_rows("norm_quantize", norm_quantize_kernel<X, T>, p, shared_bytes, launch);
}

}  // namespace taut
