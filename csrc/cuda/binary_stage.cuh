// What products of bits take from shared memory: words of rows of x and of panels of the weight,
// stage after stage, plane after plane.
#pragma once
#include "cuda/binary_gemm_params.h"
#include "cuda/device.h"
#include "cuda/ptx/cp_async.h"

namespace taut {

// Which part of the product a block computes, and how far it has come.
struct BinaryBlock {
  int64_t first_row;
  int first_panel;
  int words, planes;

  // Stages of all planes; each plane begins with a new one.
  template <class S>
  __device__ __forceinline__ int steps() const {
    return (words + S::kStepWords - 1) / S::kStepWords * planes;
  }
};

// The blocks of a grid: those of a tile's rows are neighbours and share rows of x; weights stay in
// the cache that all blocks share.
template <class S>
__host__ __device__ constexpr int panels_across(int32_t out_features) {
  return (words_of(out_features) + S::kPanels - 1) / S::kPanels;
}
template <class S>
int64_t binary_blocks(const BinaryLinearParams& p) {
  return (p.rows + S::kRows - 1) / S::kRows * panels_across<S>(p.out_features);
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
__device__ __forceinline__ BinaryBlock block_of(const BinaryLinearParams& p) {
  const int across = panels_across<S>(p.out_features);
  BinaryBlock block;
  block.first_row = int64_t{blockIdx.x / across} * S::kRows;
  block.first_panel = blockIdx.x % across * S::kPanels;
  block.words = words_of(p.in_features);
  block.planes = planes_of<S>(p, block.first_row);
  return block;
}

// A place on the way through all planes: the `index`th plane that is visited, and a stage's first
// word of it. Planes of codes go from the highest down, so that doubling what is there before each
// weighs them all; the highest counts negative.
struct BinaryWalk {
  int index = 0, word = 0;

  template <class S>
  __device__ __forceinline__ void advance(const BinaryBlock& block) {
    word += S::kStepWords;
    if (word < block.words) return;
    word = 0;
    ++index;
  }
  // What sums and counts are multiplied by before this stage.
  __device__ __forceinline__ int factor(bool is_codes, bool is_xor = false) const {
    if ((!is_codes && !is_xor) || word > 0 || index == 0) return 1;
    return !is_codes ? -1 : index == 1 ? -2 : 2;
  }
  // What inverts the weight where this stage is of a second rail.
  __device__ __forceinline__ uint32_t flip(bool is_codes) const {
    return !is_codes && index == 1 ? ~0u : 0u;
  }
};

// A stage has S::kStepWords words of each row, in pieces of kPieceWords, where S::row_place puts
// them, and behind those a line of 64 channels per panel and word, kChannelPitch words apart. A
// thread copies one piece of every kRowStep-th row, and of each panel two channels of one word.
template <class S>
struct BinaryCopies {
  static_assert(S::kThreads / 32 == S::kStepWords, "a warp copies the channels of a word");
  static constexpr int kPieces = S::kStepWords / S::kPieceWords;
  static constexpr int kRowStep = S::kThreads / kPieces;
  static_assert(S::kRows % kRowStep == 0 && kRowStep % 8 == 0, "rows repeat their swizzle");

  const int thread = static_cast<int>(threadIdx.x);
  const int word = thread % kPieces * S::kPieceWords;  // of the stage, in rows
  const int place = S::row_place(thread * S::kPieceWords);
  const int line = thread / 32;  // which word of the stage, in channels
  const int channels = S::kRowWords + line * S::kChannelPitch + thread % 32 * 2;
};

// Starts copying the stage at `at`, and moves on. Words that there are not become zeros; rows and
// panels that there are not have no results, so the last ones stand for them.
template <class S>
__device__ __forceinline__ void load_stage(uint64_t* stage, const BinaryLinearParams& p,
                                           const BinaryBlock& block, BinaryWalk& at) {
  using Copies = BinaryCopies<S>;
  const Copies own;
  const int plane = p.input == BinaryInput::codes ? block.planes - 1 - at.index : at.index;
  const int word = at.word + own.word;
  const int bytes = 8 * min(max(block.words - word, 0), S::kPieceWords);
  const uint64_t* x = p.x + plane * p.plane_stride + (bytes > 0 ? word : 0);
#pragma unroll
  for (int i = 0; i < S::kRows / Copies::kRowStep; ++i) {
    const int64_t row = block.first_row + i * Copies::kRowStep + own.thread / Copies::kPieces;
    ptx::cp_async<8 * S::kPieceWords>(stage + own.place + i * Copies::kRowStep * S::kStepWords,
                                      x + (row < p.rows ? row : p.rows - 1) * p.x_stride, bytes);
  }
  const bool exists = at.word + own.line < block.words;
  const int64_t line = exists ? at.word + own.line : 0;
  const int last_panel = words_of(p.out_features) - 1;
#pragma unroll
  for (int i = 0; i < S::kPanels; ++i) {
    const int64_t panel = min(block.first_panel + i, last_panel);
    const uint64_t* pair =
        p.packed + (panel * block.words + line) * kBitsPerWord + own.thread % 32 * 2;
    ptx::cp_async<16>(stage + own.channels + i * S::kStepWords * S::kChannelPitch, pair,
                      exists ? 16 : 0);
  }
  at.advance<S>(block);
}

// Clears the bits behind the last column in the words that this thread copied; they have arrived.
template <class S>
__device__ __forceinline__ void clear_tail(uint64_t* stage, const BinaryLinearParams& p,
                                           const BinaryBlock& block, const BinaryWalk& at) {
  using Copies = BinaryCopies<S>;
  const int last = block.words - 1 - at.word, tail = p.in_features % kBitsPerWord;
  if (tail == 0 || last >= S::kStepWords) return;
  const Copies own;
  const uint64_t mask = (uint64_t{1} << tail) - 1;
  if (last / S::kPieceWords == own.word / S::kPieceWords) {
#pragma unroll 1
    for (int i = 0; i < S::kRows / Copies::kRowStep; ++i)
      stage[own.place + last % S::kPieceWords + i * Copies::kRowStep * S::kStepWords] &= mask;
  }
  if (last != own.line) return;
#pragma unroll 1
  for (int i = 0; i < S::kPanels; ++i) {
    uint64_t* pair = stage + own.channels + i * S::kStepWords * S::kChannelPitch;
    pair[0] &= mask;
    pair[1] &= mask;
  }
}

// The set bits of a row in a stage, and of a channel in its lines.
template <class S>
__device__ __forceinline__ int count_row(const uint64_t* stage, int row) {
  int count = 0;
#pragma unroll 2  // more would cost registers that sums need
  for (int w = 0; w < S::kStepWords; w += 2) {
    const uint64_t* pair = stage + S::row_place(row * S::kStepWords + w);
    const uint4 words = *reinterpret_cast<const uint4*>(pair);
    count += __popc(words.x) + __popc(words.y) + __popc(words.z) + __popc(words.w);
  }
  return count;
}
template <class S>
__device__ __forceinline__ int count_channel(const uint64_t* channels, int channel) {
  const uint64_t* words =
      channels + channel / kBitsPerWord * S::kStepWords * S::kChannelPitch + channel % kBitsPerWord;
  int count = 0;
#pragma unroll 2
  for (int w = 0; w < S::kStepWords; ++w) count += __popcll(words[w * S::kChannelPitch]);
  return count;
}

}  // namespace taut
