// Linear layers over 1-bit weights on sm_80 to sm_90: mma.sync counts the bits of x & w or x ^ w.
//
// x is planes of bits: one rail, two rails, or the planes of codes. With |a| the number of set bits
// and w the bits of a channel's signs, the product of x and the signs is
//   one rail   sum = 4 |x & w| - 2 |x| - (2 |w| - K)
//   two rails  sum = 2 (|p & w| + |n & ~w|) - (|p| + |n|)
//   codes      sum = 2 A - R with A = sum over planes of c |plane & w|, R likewise of c |plane|,
//   and
//              c = 2^i but for the highest plane, where it is -2^i
// so a plane is one pass over K, and between planes of codes the accumulators are doubled. Where
// XOR is one product (ptx::has_native_xor), rows need no counts: of a plane and the signs the
// product is |w| - |plane ^ w|, and as the c of a code add up to -1,
//   one rail   sum = K - 2 |x ^ w|
//   two rails  sum = |n ^ w| - |p ^ w|, the accumulators being negated between the rails
//   codes      sum = -|w| - sum over planes of c |plane ^ w|
// Behind the last column all bits are 0, of x and of w.
//
// A block computes 32 M rows times 128 channels, two panels, with four warps of 16 M rows times a
// panel; 256 bits of K at a time travel through a ring of stages in shared memory. Which bit of a
// stage is which k of an instruction is free as long as A and B agree: lane t of a quad takes word
// t, its low half as the first and its high half as the second register, so that operands are read
// as they lie. Likewise column c of a pair of 8-channel tiles is channel 2 c (first tile) or 2 c +
// 1, and a lane ends with four neighbouring channels 4 t ... of each group of 16.
#pragma once
#include "cuda/binary_epilogue.cuh"
#include "cuda/binary_stage.cuh"
#include "cuda/ptx/mma.h"

namespace taut {

template <int M_>
struct BinaryTile {
  static constexpr int M = M_;
  static constexpr int kRows = 32 * M, kPanels = 2, kChannels = kPanels * kBitsPerWord;
  static constexpr int kThreads = 128, kGroups = kBitsPerWord / 16;
  static constexpr int kStages = 4, kStepWords = 4, kPieceWords = 1;
  // Rows of words lie 32 bytes apart, words of channels 32 bytes more than a multiple of 128, so
  // that the four words t and the rows g of a load lie in different banks.
  static constexpr int kChannelPitch = kBitsPerWord + 4;
  static constexpr int kRowWords = kRows * kStepWords;
  static constexpr int kStageWords = kRowWords + kPanels * kStepWords * kChannelPitch;
  // Behind the products: 16 rows of sums of each warp.
  static constexpr int kSumPitch = kBitsPerWord + 16;
  static constexpr int kSharedBytes = kStages * kStageWords * 8 + (kRows + kChannels) * 4;

  __device__ __forceinline__ static int row_place(int word) { return word; }
  static_assert(kStages * kStageWords * 8 >= kThreads / 32 * 16 * kSumPitch * 4,
                "sums fit where the stages were");
  static_assert(kRows <= kThreads && kChannels <= kThreads, "a thread counts a row and a channel");
};

__device__ __forceinline__ void multiply_bits(int32_t (&acc)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
  if (ptx::has_native_xor()) {
    ptx::mma_m16n8k256_xor(acc, a, b);
  } else {
    ptx::mma_m16n8k256_and(acc, a, b);
  }
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
      multiply_bits(acc[m][2 * j], a[m], first);
      multiply_bits(acc[m][2 * j + 1], a[m], second);
    }
  }
}

template <class S>
__device__ __forceinline__ void store_results(const BinaryLinearParams& p, const BinaryBlock& block,
                                              const int32_t (&acc)[S::M][2 * S::kGroups][4]) {
  int32_t* shared = reinterpret_cast<int32_t*>(dynamic_shared());
  const int32_t* row_counts = shared + 2 * S::kStages * S::kStageWords;
  const int32_t* columns = row_counts + S::kRows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int warp_panel = warp % S::kPanels, warp_row = warp / S::kPanels * 16 * S::M;
  int32_t* sums = shared + warp * 16 * S::kSumPitch;
  const int factor = ptx::has_native_xor() ? xor_factor(p.input) : and_factor(p.input);
  const BinarySlice slice(p, factor, block.first_panel + warp_panel,
                          columns + warp_panel * kBitsPerWord);
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
    store_slice<S>(p, slice, sums, row_counts + row, block.first_row + row);
    __syncwarp();
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads)
    binary_linear_kernel(const __grid_constant__ BinaryLinearParams p) {
  uint64_t* stages = reinterpret_cast<uint64_t*>(dynamic_shared());
  int32_t* row_counts = reinterpret_cast<int32_t*>(stages + S::kStages * S::kStageWords);
  const int thread = threadIdx.x, warp = thread / 32;
  const BinaryBlock block = block_of<S>(p);
  const bool is_codes = p.input == BinaryInput::codes, one_rail = p.input == BinaryInput::one_rail;
  const bool is_xor = ptx::has_native_xor();
  const int steps = block.steps<S>();

  BinaryWalk next, at;
  const auto load_next = [&](int step) {
    if (step < steps) load_stage<S>(stages + step % S::kStages * S::kStageWords, p, block, next);
    ptx::cp_async_commit();
  };
  for (int i = 0; i < S::kStages - 1; ++i) load_next(i);

  int32_t acc[S::M][2 * S::kGroups][4] = {};
  int row_count = 0, channel_count = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<S::kStages - 2>();
    uint64_t* stage = stages + step % S::kStages * S::kStageWords;
    uint64_t* channels = stage + S::kRowWords;
    clear_tail<S>(stage, p, block, at);
    __syncthreads();  // the stage is complete, and nobody reads the one before any more
    load_next(step + S::kStages - 1);
    if (const int factor = at.factor(is_codes, is_xor); factor != 1) {
      row_count *= factor;
#pragma unroll
      for (int i = 0; i < S::M * 2 * S::kGroups * 4; ++i)
        acc[i / 4 / (2 * S::kGroups)][i / 4 % (2 * S::kGroups)][i % 4] *= factor;
    }
    multiply_stage<S>(acc, stage + warp / S::kPanels * 16 * S::M * S::kStepWords,
                      channels + warp % S::kPanels * S::kStepWords * S::kChannelPitch,
                      is_xor ? 0 : at.flip(is_codes));
    if (!is_xor && thread < S::kRows) row_count += count_row<S>(stage, thread);
    if (is_xor ? is_codes && at.index == 0 : one_rail)
      channel_count += count_channel<S>(channels, thread);
    at.advance<S>(block);
  }
  if (thread < S::kRows) row_counts[thread] = row_count;
  // XOR: |w| of codes, -K of one rail; AND: 2 |w| - K of one rail. The rest counts no channels.
  row_counts[S::kRows + thread] = (is_xor ? 1 : 2) * channel_count - (one_rail ? p.in_features : 0);
  __syncthreads();  // counts are there, and nobody reads stages any more
  store_results<S>(p, block, acc);
}

}  // namespace taut
