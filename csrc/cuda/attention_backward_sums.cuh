// Gradients that are sums over tiles, from the tiles' shares, in fixed order.
#pragma once
#include "cuda/attention_tile.cuh"

namespace taut {

struct SharesParams {
  const float* x;             // (rows, columns), a row per tile of kShortRows tokens
  float* out;                 // (sequences, columns), or (columns,)
  const int32_t* cu_seqlens;  // null: one sum over all rows
  int32_t rows, columns, total;
};
constexpr int kSharesThreads = 1024, kSharesColumns = 32;
constexpr int kSharesSharedBytes = 4 * kSharesThreads;

// Block (sequence, 32 columns), 32 threads per column.
__global__ void __launch_bounds__(kSharesThreads)
    sum_shares_kernel(const __grid_constant__ SharesParams p) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());
  const int column = blockIdx.y * 32 + threadIdx.x % 32, group = threadIdx.x / 32;
  int begin = 0, end = p.rows;
  if (p.cu_seqlens != nullptr) {
    const int b = blockIdx.x;
    const int first = clamp(p.cu_seqlens[b], 0, p.total);
    const int last = clamp(p.cu_seqlens[b + 1], first, p.total);
    begin = first / kShortRows + b;
    end = begin + (last - first + kShortRows - 1) / kShortRows;
  }
  float sum = 0.0f;
  if (column < p.columns)
    for (int row = begin + group; row < end; row += 32)
      sum += p.x[int64_t{row} * p.columns + column];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (group == 0 && column < p.columns) {
    for (int i = 1; i < 32; ++i) sum += sums[i * 32 + threadIdx.x];
    p.out[int64_t{blockIdx.x} * p.columns + column] = sum;
  }
}

}  // namespace taut
