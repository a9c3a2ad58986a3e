// Linear layers over 1-bit weights on sm_80 to sm_90: mma.sync counts the bits of x & w.
//
// x is planes of bits: one rail, two rails, or the planes of codes. With |a| the number of set bits
// and w the bits of a channel's signs, the product of x and the signs is
//   one rail   sum = 4 |x & w| - 2 |x| - (2 |w| - K)
//   two rails  sum = 2 (|p & w| + |n & ~w|) - (|p| + |n|)
//   codes      sum = 2 A - R with A = sum over planes of c |plane & w|, R likewise of c |plane|,
//   and
//              c = 2^i but for the highest plane, where it is -2^i
// so a plane is one pass over K, and between planes of codes the accumulators are doubled.
//
// A block computes 32 M rows times 128 channels, two panels, with four warps of 16 M rows times a
// panel; 256 bits of K at a time travel through a ring of stages in shared memory. Which bit of a
// stage is which k of an instruction is free as long as A and B agree: lane t of a quad takes word
// t, its low half as the first and its high half as the second register, so that operands are read
// as they lie. Likewise column c of a pair of 8-channel tiles is channel 2 c (first tile) or 2 c +
// 1, and a lane ends with four neighbouring channels 4 t ... of each group of 16.
#pragma once
#include "cuda/binary_epilogue.cuh"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mma.h"

namespace taut {

// Starts copying words [first_word, first_word + 4) of a plane and of the weight; zeros where there
// are none.
template <class S>
__device__ __forceinline__ void load_stage(uint64_t* stage, const BinaryLinearParams& p,
                                           const BinaryBlock& block, int plane, int first_word) {
#pragma unroll
  for (int i = 0; i < S::kRowWords / S::kThreads; ++i) {
    const int chunk = i * S::kThreads + threadIdx.x;
    const int64_t row = block.first_row + chunk / S::kStepWords;
    const int word = first_word + chunk % S::kStepWords;
    const bool exists = row < p.rows && word < block.words;
    const uint64_t* source = p.x + row * p.x_stride + plane * p.plane_stride + word;
    ptx::cp_async<8>(stage + chunk, exists ? source : p.x, exists ? 8 : 0);
  }
  const int panels = words_of(p.out_features);
  uint64_t* channels = stage + S::kRowWords;
#pragma unroll
  for (int i = 0; i < S::kPanels * S::kStepWords * 32 / S::kThreads; ++i) {
    const int chunk = i * S::kThreads + threadIdx.x;
    const int line = chunk / 32, pair = chunk % 32 * 2;  // line: (panel, word)
    const int panel = block.first_panel + line / S::kStepWords;
    const int word = first_word + line % S::kStepWords;
    const bool exists = panel < panels && word < block.words;
    const uint64_t* source = p.packed + (int64_t{panel} * block.words + word) * kBitsPerWord + pair;
    ptx::cp_async<16>(channels + line * S::kChannelPitch + pair, exists ? source : p.packed,
                      exists ? 16 : 0);
  }
}

// Clears the bits behind the last column in the words that this thread copied; they have arrived.
template <class S>
__device__ __forceinline__ void clear_tail(uint64_t* stage, uint64_t mask, int last) {
#pragma unroll 1
  for (int i = 0; i < S::kRowWords / S::kThreads; ++i) {
    const int chunk = i * S::kThreads + threadIdx.x;
    if (chunk % S::kStepWords == last) stage[chunk] &= mask;
  }
  uint64_t* channels = stage + S::kRowWords;
#pragma unroll 1
  for (int i = 0; i < S::kPanels * S::kStepWords * 32 / S::kThreads; ++i) {
    const int chunk = i * S::kThreads + threadIdx.x;
    uint64_t* pair = channels + chunk / 32 * S::kChannelPitch + chunk % 32 * 2;
    if (chunk / 32 % S::kStepWords == last) {
      pair[0] &= mask;
      pair[1] &= mask;
    }
  }
}

// The set bits of this thread's row (words one apart) or channel (`pitch` apart) in a stage.
template <class S>
__device__ __forceinline__ int count_bits(const uint64_t* words, int pitch) {
  int count = 0;
#pragma unroll
  for (int w = 0; w < S::kStepWords; ++w) count += __popcll(words[w * pitch]);
  return count;
}

// acc[m][2 j + i]: rows 16 m ... of the warp, channels 16 j + i + 2 c. `flip` inverts the weight.
template <class S>
__device__ __forceinline__ void multiply_stage(int32_t (&acc)[S::M][2 * S::kGroups][4],
                                               const uint64_t* rows, const uint64_t* channels,
                                               uint32_t flip) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t a[S::M][4];
#pragma unroll
  for (int m = 0; m < S::M; ++m) {
    const uint2* row = reinterpret_cast<const uint2*>(rows) + (m * 16 + g) * S::kStepWords + t;
    const uint2 upper = row[0], lower = row[8 * S::kStepWords];
    a[m][0] = upper.x;
    a[m][1] = lower.x;
    a[m][2] = upper.y;
    a[m][3] = lower.y;
  }
#pragma unroll
  for (int j = 0; j < S::kGroups; ++j) {
    const uint4 pair =
        *reinterpret_cast<const uint4*>(channels + t * S::kChannelPitch + j * 16 + 2 * g);
    const uint32_t first[2] = {pair.x ^ flip, pair.y ^ flip};
    const uint32_t second[2] = {pair.z ^ flip, pair.w ^ flip};
#pragma unroll
    for (int m = 0; m < S::M; ++m) {
      ptx::mma_m16n8k256_and(acc[m][2 * j], a[m], first);
      ptx::mma_m16n8k256_and(acc[m][2 * j + 1], a[m], second);
    }
  }
}

// How many planes the block's rows need: those of codes go by the largest code.
template <class S>
__device__ __forceinline__ int planes_of(const BinaryLinearParams& p, int64_t first_row) {
  if (p.input != BinaryInput::codes) return p.input == BinaryInput::one_rail ? 1 : 2;
  const int64_t row = first_row + threadIdx.x;
  const int highest = threadIdx.x < S::kRows && row < p.rows ? p.highest[row] : 1;
  int planes = 2;
  for (int i = 2; i < kCodePlanes; ++i) planes = __syncthreads_or(highest >= i) ? i + 1 : planes;
  return planes;
}

template <class S>
__global__ void __launch_bounds__(S::kThreads)
    binary_linear_kernel(const __grid_constant__ BinaryLinearParams p) {
  uint64_t* stages = reinterpret_cast<uint64_t*>(dynamic_shared());
  int32_t* row_counts = reinterpret_cast<int32_t*>(stages + S::kStages * S::kStageWords);
  const int thread = threadIdx.x, warp = thread / 32;
  const int across = (words_of(p.out_features) + S::kPanels - 1) / S::kPanels;
  BinaryBlock block;
  block.first_row = int64_t{blockIdx.x / across} * S::kRows;
  block.first_panel = blockIdx.x % across * S::kPanels;
  block.words = words_of(p.in_features);
  block.planes = planes_of<S>(p, block.first_row);
  const bool is_codes = p.input == BinaryInput::codes, one_rail = p.input == BinaryInput::one_rail;
  const int per_plane = (block.words + S::kStepWords - 1) / S::kStepWords;
  const int steps = per_plane * block.planes;
  const int tail_bits = p.in_features % kBitsPerWord;
  const uint64_t tail = (uint64_t{1} << tail_bits) - 1;

  int next_index = 0, next_word = 0;  // what is loaded next: planes from the highest down
  const auto load_next = [&](int step) {
    if (step < steps) {
      const int plane = is_codes ? block.planes - 1 - next_index : next_index;
      load_stage<S>(stages + step % S::kStages * S::kStageWords, p, block, plane, next_word);
      next_word += S::kStepWords;
      if (next_word >= block.words) {
        next_word = 0;
        ++next_index;
      }
    }
    ptx::cp_async_commit();
  };
  for (int i = 0; i < S::kStages - 1; ++i) load_next(i);

  int32_t acc[S::M][2 * S::kGroups][4] = {};
  int row_count = 0, channel_count = 0, index = 0, word = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<S::kStages - 2>();
    uint64_t* stage = stages + step % S::kStages * S::kStageWords;
    uint64_t* channels = stage + S::kRowWords;
    if (tail_bits && word + S::kStepWords >= block.words)
      clear_tail<S>(stage, tail, block.words - 1 - word);
    __syncthreads();  // the stage is complete, and nobody reads the one before any more
    load_next(step + S::kStages - 1);
    if (is_codes && word == 0 && index > 0) {
      const int factor = index == 1 ? -2 : 2;
      row_count *= factor;
#pragma unroll
      for (int i = 0; i < S::M * 2 * S::kGroups * 4; ++i)
        acc[i / 4 / (2 * S::kGroups)][i / 4 % (2 * S::kGroups)][i % 4] *= factor;
    }
    multiply_stage<S>(acc, stage + warp / S::kPanels * 16 * S::M * S::kStepWords,
                      channels + warp % S::kPanels * S::kStepWords * S::kChannelPitch,
                      !is_codes && index == 1 ? ~0u : 0u);
    if (thread < S::kRows) row_count += count_bits<S>(stage + thread * S::kStepWords, 1);
    if (one_rail) {
      const int line = thread / kBitsPerWord * S::kStepWords;
      channel_count += count_bits<S>(channels + line * S::kChannelPitch + thread % kBitsPerWord,
                                     S::kChannelPitch);
    }
    word += S::kStepWords;
    if (word >= block.words) {
      word = 0;
      ++index;
    }
  }
  if (thread < S::kRows) row_counts[thread] = row_count;
  row_counts[S::kRows + thread] = one_rail ? 2 * channel_count - p.in_features : 0;
  __syncthreads();  // counts are there, and nobody reads stages any more
  store_results<S>(p, block, acc);
}

}  // namespace taut
