// Linear layers over 1-bit weights by Hopper's wgmma: the products of binary_gemm.cuh transposed.
//
// A is the weight: a lane takes the 32-bit halves of words that the instruction wants of it from
// the packed lines of a stage, and inverts them for a second rail. B is rows of x as they lie in
// memory, 64 bytes each, swizzled. So a stage is 512 bits of K, two products; rows of 768 bits
// waste a quarter of them, those of 384, 1024 and 3072 none. Two blocks share a multiprocessor:
// what one does beside products, counting bits and storing results, runs under those of the other.
#pragma once
#include "cuda/binary_epilogue.cuh"
#include "cuda/binary_stage.cuh"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/swizzle.h"
#include "cuda/ptx/wgmma.h"

namespace taut {

// 128 rows x 128 channels; a warpgroup takes the 64 channels of a panel. Rows of x are copied in
// pieces of one word or, where they lie at multiples of 16 bytes, two.
template <int piece_words>
struct BinaryWgmmaTile {
  static constexpr int kRows = 128, kPanels = 2, kChannels = kPanels * kBitsPerWord;
  static constexpr int kThreads = 128 * kPanels;
  static constexpr int kStages = 4, kStepWords = 8, kProducts = kStepWords / 4;
  static constexpr int kPieceWords = piece_words;
  // Words of channels lie 64 bytes more than a multiple of 128 apart: the lanes of a warp read 32
  // bits each of two words of 8 channels, from all banks.
  static constexpr int kChannelPitch = kBitsPerWord + 8;
  static constexpr int kRowWords = kRows * kStepWords;
  static constexpr int kStageWords = kRowWords + kPanels * kStepWords * kChannelPitch;
  // Behind the products: all sums. A lane stores two rows by four of channels 8 banks apart.
  static constexpr int kSumPitch = kBitsPerWord + 4;
  static constexpr int kSharedBytes = kStages * kStageWords * 8 + (kRows + kChannels) * 4;
  static constexpr uint32_t kRowBytes = 8 * kStepWords, kAtom = 8 * kRowBytes;

  __device__ __forceinline__ static int row_place(int word) {
    return static_cast<int>(ptx::swizzle_64(8 * word) / 8);
  }
  static_assert(kRowBytes == 64, "rows are swizzled in 64 bytes");
  static_assert(kStageWords * 8 % kAtom == 0, "stages begin with an atom");
  static_assert(kStages * kStageWords * 8 >= kPanels * kRows * kSumPitch * 4,
                "sums fit where the stages were");
  static_assert(kThreads == kRows + kChannels, "a thread counts a row or a channel");
};

// Starts sums += products of a stage. Sum i is of channel 16 w + g + 8 (i / 2 % 2) of the panel and
// row 8 (i / 4) + 2 t + i % 2, with w = warp % 4, g = lane / 4, t = lane % 4.
template <class S>
__device__ __forceinline__ void start_products(int32_t (&sums)[S::kRows / 2],
                                               uint32_t (&a)[S::kProducts][4],
                                               const uint64_t* stage, uint32_t flip) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4;
  const uint64_t* channels = stage + S::kRowWords + warp / 4 * S::kStepWords * S::kChannelPitch +
                             t / 2 * S::kChannelPitch + warp % 4 * 16 + lane / 4;
  const uint32_t* halves = reinterpret_cast<const uint32_t*>(channels) + t % 2;
#pragma unroll
  for (int i = 0; i < S::kProducts; ++i) {
    const uint32_t* first = halves + 4 * i * 2 * S::kChannelPitch;
    const uint32_t* second = first + 2 * 2 * S::kChannelPitch;
    a[i][0] = first[0] ^ flip;
    a[i][1] = first[2 * 8] ^ flip;
    a[i][2] = second[0] ^ flip;
    a[i][3] = second[2 * 8] ^ flip;
    ptx::hold_registers(a[i]);
  }
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < S::kProducts; ++i) {
    const uint64_t b = ptx::matrix_descriptor(stage + 4 * i, 0, S::kAtom, ptx::Swizzle::bytes_64);
    ptx::wgmma_rs<ptx::b1>(sums, a[i], b, true);
  }
  ptx::wgmma_commit();
}

// Sums to shared memory, row after row of each panel, and on from there.
template <class S>
__device__ __forceinline__ void store_sums(const BinaryLinearParams& p, const BinaryBlock& block,
                                           const int32_t (&sums)[S::kRows / 2],
                                           const int32_t* row_counts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, panel = warp / 4;
  int32_t* tile = reinterpret_cast<int32_t*>(dynamic_shared()) + panel * S::kRows * S::kSumPitch;
  const int channel = warp % 4 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < S::kRows / 2; ++i) {
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
    tile[row * S::kSumPitch + channel + i / 2 % 2 * 8] = sums[i];
  }
  __syncthreads();
  const BinarySlice slice(p, and_factor(p.input), block.first_panel + panel,
                          row_counts + S::kRows + panel * kBitsPerWord);
#pragma unroll 1
  for (int row = warp % 4 * 16; row < S::kRows; row += 64)
    store_slice<S>(p, slice, tile + row * S::kSumPitch, row_counts + row, block.first_row + row);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 2)
    binary_wgmma_kernel(const __grid_constant__ BinaryLinearParams p) {
  uint64_t* stages = reinterpret_cast<uint64_t*>(dynamic_shared());
  int32_t* counts = reinterpret_cast<int32_t*>(stages + S::kStages * S::kStageWords);
  const int thread = threadIdx.x;
  const BinaryBlock block = block_of<S>(p);
  const bool is_codes = p.input == BinaryInput::codes, one_rail = p.input == BinaryInput::one_rail;
  const int steps = block.steps<S>();

  BinaryWalk next, at;
  const auto load_next = [&](int step) {
    if (step < steps) load_stage<S>(stages + step % S::kStages * S::kStageWords, p, block, next);
    ptx::cp_async_commit();
  };
  for (int i = 0; i < S::kStages - 1; ++i) load_next(i);

  int32_t sums[S::kRows / 2] = {};
  int count = 0;  // of a row in the first warpgroup, of a channel in the second
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<S::kStages - 2>();
    uint64_t* stage = stages + step % S::kStages * S::kStageWords;
    clear_tail<S>(stage, p, block, at);
    ptx::fence_async_shared();
    __syncthreads();  // the stage is complete, and nobody reads the one before any more
    if (const int factor = at.factor(is_codes); factor != 1) {
      count *= factor;
#pragma unroll
      for (int i = 0; i < S::kRows / 2; ++i) sums[i] *= factor;
      ptx::hold_registers(sums);
    }
    uint32_t a[S::kProducts][4];
    start_products<S>(sums, a, stage, at.flip(is_codes));
    load_next(step + S::kStages - 1);
    if (thread < S::kRows) {
      count += count_row<S>(stage, thread);
    } else if (one_rail) {
      count += count_channel<S>(stage + S::kRowWords, thread - S::kRows);
    }
    ptx::wgmma_wait<0>();
    ptx::hold_registers(sums);
#pragma unroll
    for (int i = 0; i < S::kProducts; ++i) ptx::hold_registers(a[i]);  // products read them so long
    at.advance<S>(block);
  }
  counts[thread] = thread < S::kRows ? count : one_rail ? 2 * count - p.in_features : 0;
  __syncthreads();  // nobody reads stages any more
  store_sums<S>(p, block, sums, counts);
}

}  // namespace taut
