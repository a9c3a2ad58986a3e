// cu_seqlens -> the list of work items of varlen attention, longest first: see attention_params.h.
#pragma once
#include "cuda/attention_params.h"
#include "cuda/device.h"

namespace taut {

constexpr int kPlanThreads = 256;  // sequences per block; every block passes over all of them
constexpr int kPlanSharedBytes = 3 * kPlanThreads * 4;

// What decides the place of a sequence's items.
struct PlannedSequence {
  int length, items;  // max(len_q, len_k), items
};

__device__ __forceinline__ int most_of(int a, int b) { return a > b ? a : b; }

__device__ __forceinline__ PlannedSequence plan_sequence(const AttentionPlanParams& p, int b) {
  const int len_q = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b];
  const int len_k = p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b];
  const int length = most_of(len_q, len_k);
  const int rows = length > kShortLength ? kLongRows : kShortRows;
  return {length, (len_q + rows - 1) / rows};
}

__device__ __forceinline__ int plan_error(const int32_t* cu, int batch, int b, int total) {
  if (b == batch - 1 && cu[batch] > total) return kPlanEnd;
  if (cu[b + 1] < cu[b]) return kPlanDecreases;
  return b == 0 && cu[0] != 0 ? kPlanStart : kPlanFine;
}

// The sum of x over the block, through `scratch` of kPlanThreads.
__device__ __forceinline__ int plan_sum(int* scratch, int x) {
  const int thread = threadIdx.x;
  scratch[thread] = x;
  __syncthreads();
  for (int width = kPlanThreads / 2; width > 0; width /= 2) {
    if (thread < width) scratch[thread] += scratch[thread + width];
    __syncthreads();
  }
  const int sum = scratch[0];
  __syncthreads();
  return sum;
}

__device__ __forceinline__ void write_row(const AttentionPlanParams& p, int64_t row, int x, int y) {
  p.plan[2 * row] = x;
  p.plan[2 * row + 1] = y;
}

// The place of a sequence is the number of sequences (for its items, of items) before it in the
// order, counted by comparing with every other one: O(batch) per thread, exact, in one launch.
__global__ void __launch_bounds__(kPlanThreads)
    attention_plan_kernel(const __grid_constant__ AttentionPlanParams p) {
  int* lengths = reinterpret_cast<int*>(dynamic_shared());
  int* items = lengths + kPlanThreads;
  int* places = items + kPlanThreads;
  const int thread = threadIdx.x;
  const int first = blockIdx.x * kPlanThreads, own = first + thread;
  const PlannedSequence mine = own < p.batch ? plan_sequence(p, own) : PlannedSequence{0, 0};
  int place = 0, items_before = 0, error = kPlanFine;
  int ends[4] = {0, 0, 0, 0};

  for (int start = 0; start < p.batch; start += kPlanThreads) {
    const int b = start + thread;
    PlannedSequence other{-1, 0};
    if (b < p.batch) {
      const int of_q = plan_error(p.cu_seqlens_q, p.batch, b, p.total_q);
      const int of_k = plan_error(p.cu_seqlens_k, p.batch, b, p.total_k);
      error = most_of(error, most_of(of_q, of_k));
      other = plan_sequence(p, b);
    }
    lengths[thread] = other.length;
    items[thread] = other.items;
    __syncthreads();
    for (int i = 0; i < kPlanThreads; ++i) {
      const int length = lengths[i];
      const bool before = length > mine.length || (length == mine.length && start + i < own);
      place += before;
      items_before += before ? items[i] : 0;
    }
    ends[0] += other.length > kShortLength ? other.items : 0;
    ends[1] += other.length > kPackedLength ? other.items : 0;
    ends[2] += other.length > 16 ? other.items : 0;
    ends[3] += other.items;
    __syncthreads();
  }

  int worst = kPlanFine;  // the largest code wins, so that the order of threads does not matter
  for (int code = kPlanStart; code <= kPlanEnd; ++code)
    worst = __syncthreads_or(error == code) ? code : worst;
  int totals[4];
  for (int c = 0; c < 4; ++c) totals[c] = plan_sum(places, worst == kPlanFine ? ends[c] : 0);

  lengths[thread] = mine.length;
  items[thread] = mine.items;
  places[thread] = items_before;
  __syncthreads();
  if (own < p.batch) {
    const int64_t row = int64_t{kPlanHeader} + p.items + (worst == kPlanFine ? place : own);
    write_row(p, row, worst == kPlanFine ? own : -1, worst == kPlanFine ? mine.length : -1);
  }
  const int warp = thread / 32, lane = thread % 32;
  for (int s = warp; worst == kPlanFine && s < kPlanThreads && first + s < p.batch;
       s += kPlanThreads / 32) {
    const int rows = lengths[s] > kShortLength ? kLongRows : kShortRows;
    for (int i = lane; i < items[s]; i += 32)
      write_row(p, int64_t{kPlanHeader} + places[s] + i, first + s, i * rows);
  }
  for (int i = totals[3] + own; i < p.items; i += gridDim.x * kPlanThreads)
    write_row(p, int64_t{kPlanHeader} + i, -1, -1);
  if (own == 0) {
    const int used = worst == kPlanFine && p.batch > 0 ? p.cu_seqlens_q[p.batch] : 0;
    write_row(p, 0, worst, used);
    write_row(p, 1, totals[0], totals[1]);
    write_row(p, 2, totals[2], totals[3]);
    write_row(p, 3, 0, 0);
  }
}

}  // namespace taut
