// Which rows a block of attention over packed signs takes.
#pragma once
#include "cuda/attention_tile.cuh"
#include "cuda/binary_attention_params.h"

namespace taut {

// Where a tile of rows lies.
struct BinaryItem {
  int begin, length;    // of the sequence
  int head, first_row;  // of the block, or of the warp
};

// The rows of `sequence` inside the tensors, whatever cu_seqlens says.
__device__ __forceinline__ BinaryItem find_rows(const BinaryBatch& b, const Item& item, int head) {
  const int begin = clamp(b.cu_seqlens[item.sequence], 0, b.total);
  const int end = clamp(b.cu_seqlens[item.sequence + 1], begin, b.total);
  return {begin, end - begin, head, item.first_row};
}

// Fills what belongs to no sequence; everything when cu_seqlens is malformed.
__device__ __forceinline__ void fill_rest(const BinaryBatch& b, void* out, int bytes_per_head,
                                          uint32_t fill, int threads) {
  const int64_t words = int64_t{b.heads} * bytes_per_head / 4, step = int64_t{gridDim.x} * threads;
  const int64_t first = clamp(b.plan[kPlanUsed], 0, b.total) * words;
  for (int64_t i = first + int64_t{blockIdx.x} * threads + threadIdx.x; i < b.total * words;
       i += step)
    static_cast<uint32_t*>(out)[i] = fill;
}

}  // namespace taut
