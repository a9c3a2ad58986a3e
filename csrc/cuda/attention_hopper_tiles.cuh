// What the Hopper kernels of attention share: rings of tiles that the copy engine brings, products
// of a warpgroup with them, and a block's share of the plan.
//
// A tile is D / 64 columns of rows of 128 bytes, swizzled. It reaches over the end of a sequence
// into the next one: what a product sums along its rows must be cleared there, as it may hold NaN.
#pragma once
#include "cuda/attention_tile.cuh"
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/wgmma.h"

namespace taut {

// The place in a ring of stages, and the parity of its phase.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    stage = stage + 1 < kStages ? stage + 1 : 0;
    parity ^= stage == 0;
  }
};

// Calls body(sequence, item's first row, head) for the block's share of the items of a class, long
// or one, and of the heads; the same for every thread. The rows are those that `plan` is of.
template <bool kLong, class Body>
__device__ __forceinline__ void for_each_item(const AttentionParams& p, const int32_t* plan,
                                              int plan_items, int heads, const Body& body) {
  const int last = clamp(plan[kLong ? kPlanLong : kPlanOne], 0, plan_items);
  const int first = kLong ? 0 : clamp(plan[kPlanLong], 0, last);
  const int64_t units = int64_t{last - first} * heads;
  for (int64_t i = blockIdx.x; i < units; i += gridDim.x) {
    const Item item = plan_item(plan, first + i / heads, p.batch);
    if (item.sequence >= 0)
      body(find_sequence(p, item.sequence), item.first_row, static_cast<int>(i % heads));
  }
}

// One item and head: rows from first_row on, and the others of [begin, end) that they meet.
struct HopperUnit {
  Sequence sequence;
  int head, first_row, begin, end;
};

// The same where the rows are those of q, and `end` may come before `begin`.
template <class S, int KEYS, class Body>
__device__ __forceinline__ void for_each_query_unit(const AttentionParams& p, const Body& body) {
  for_each_item<S::kLong>(
      p, p.plan, p.plan_items, p.heads, [&](const Sequence& sequence, int first_row, int head) {
        if (first_row >= sequence.len_q) return;
        const int first_distance = first_row + sequence.len_k - sequence.len_q;
        const int rows = least(S::kRows, sequence.len_q - first_row);
        body(HopperUnit{sequence, head, first_row,
                        most(first_distance - p.window_left, 0) / KEYS * KEYS,
                        least(sequence.len_k, first_distance + rows + p.window_right)});
      });
}

// ---- tiles

// A tile of ROWS rows, from row `token` on, in boxes of BOX rows.
template <int D, int ROWS, int BOX = 64>
__device__ __forceinline__ void load_tile(uint8_t* tile, const ptx::TensorMap* map,
                                          uint64_t* barrier, int head, int token) {
  for (int column = 0; column < D / 64; ++column) {
    for (int row = 0; row < ROWS; row += BOX)
      ptx::tensor_load(tile + (column * ROWS + row) * 128, map, barrier, column * 64, head,
                       token + row);
  }
}

// Clears the rows from `rows` on, by THREADS threads, for products to come behind a barrier.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void clear_rows(uint8_t* tile, int rows, int thread) {
  const int rest = (ROWS - rows) * 8;  // chunks of 16 bytes
#pragma unroll 1
  for (int i = thread; i < rest * (D / 64); i += THREADS)
    *reinterpret_cast<uint4*>(tile + (i / rest * ROWS + rows) * 128 + i % rest * 16) =
        make_uint4(0, 0, 0, 0);
  ptx::fence_async_shared();
}

// ---- products of a warpgroup, to stand between wgmma_fence and wgmma_commit

// Accumulators as the instruction takes them.
template <int N>
using Flat = float (&)[4 * N];
template <int N>
__device__ __forceinline__ Flat<N> flat(float (&acc)[1][N][4]) {
  return reinterpret_cast<Flat<N>>(acc);
}
template <int N>
using FlatWords = uint32_t (&)[4 * N];
template <int N>
__device__ __forceinline__ FlatWords<N> flat(uint32_t (&fragments)[N][4]) {
  return reinterpret_cast<FlatWords<N>>(fragments);
}

// acc = 64 rows of the tile of A_ROWS rows at `a` . the 8 N rows of the tile at `b`, along the
// channels.
template <class T, int D, int A_ROWS, int N>
__device__ __forceinline__ void start_rows(float (&acc)[1][N][4], uint64_t a, uint64_t b) {
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
    ptx::wgmma_ss<T>(flat(acc), ptx::descriptor_after(a, i / 4 * A_ROWS * 128 + i % 4 * 32),
                     ptx::descriptor_after(b, i / 4 * N * 8 * 128 + i % 4 * 32), i > 0);
}

// acc += weights . the tile at `b`, along its rows.
template <class T, int D, int STEPS>
__device__ __forceinline__ void start_sums(float (&acc)[1][D / 8][4],
                                           const uint32_t (&weights)[STEPS][4], uint64_t b) {
#pragma unroll
  for (int i = 0; i < STEPS; ++i)
    ptx::wgmma_rs<T, ptx::Major::mn>(flat(acc), weights[i], ptx::descriptor_after(b, i * 2048),
                                     true);
}

// Accumulators of 64 x 8 N numbers as the A operand of a product, and held there.
template <class T, int N>
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[N / 2][4],
                                             const float (&acc)[1][N][4]) {
#pragma unroll
  for (int i = 0; i < N * 2; ++i)
    weights[i / 4][i % 4] = ptx::pack<T>(acc[0][i / 2][i % 2 * 2], acc[0][i / 2][i % 2 * 2 + 1]);
  ptx::hold_registers(flat(weights));
}

// As a value that the compiler keeps: it would spend instructions in loops on bits that it knows of
// the address.
__device__ __forceinline__ uint64_t kept_descriptor(uint64_t whole) {
  return (whole & ~uint64_t{0xFFFFFFFF}) |
         static_cast<uint32_t>(ptx::opaque(static_cast<int>(whole)));
}

// Of a tile of `rows` rows, both for products along its channels and for those along its rows.
__device__ __forceinline__ uint64_t tile_descriptor(const uint8_t* tile, int rows) {
  return kept_descriptor(ptx::matrix_descriptor(tile, rows * 128, 1024, ptx::Swizzle::bytes_128));
}

}  // namespace taut
