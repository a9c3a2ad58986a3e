// What the two Hopper kernels of the backward of attention share: what a block keeps in shared
// memory, the warps that load, the ends of a unit of work.
//
// A unit owns rows of a head, of q with the gradient of out or of k with v, and meets the other
// pair in tiles of kColumns rows, which pass through a ring. Where such a tile reaches over the end
// of the sequence, both its operands are cleared: one is summed along these rows, and from the
// other come the factors that it meets there, zeros unless they are NaN.
#pragma once
#include "cuda/attention_gradient.cuh"
#include "cuda/attention_hopper_tiles.cuh"

namespace taut {

// WARPGROUPS compute: 2 on items of long sequences, 1 on those of the class one.
template <class T_, int D_, int WARPGROUPS, bool kOfKeys_, Scores kScores_>
struct HopperBackwardShape {
  using T = T_;
  static constexpr int D = D_;
  static constexpr bool kOfKeys = kOfKeys_;  // dk and dv, else dq
  static constexpr Scores kScores = kScores_;
  static_assert(D == 64 || D == 128, "operands are tiles of 64 channels");
  static constexpr bool kLong = WARPGROUPS == 2;
  static constexpr int kRows = 64 * WARPGROUPS;
  static constexpr int kComputing = 128 * WARPGROUPS, kThreads = 128 + kComputing;
  // At D = 128, dk and dv leave registers for scores and their gradients of 32 columns.
  static constexpr int kColumns = kOfKeys && D == 128 ? 32 : 64, N = kColumns / 8;
  // Registers per thread, as in HopperShape.
  static constexpr int kBlocks = kLong ? 1 : 2;
  static constexpr int kLoaderRegisters = kOfKeys ? 40 : 24;
  static constexpr int kRegisters = kLong ? (kOfKeys ? 232 : 240) : kOfKeys ? 216 : 232;

  // Bytes in shared memory. A warpgroup's own pair of tiles has 64 rows.
  static constexpr int kOwnTile = 64 * D * 2, kTile = kColumns * D * 2;
  static constexpr int kRoom = (kLong ? 96 : 64) << 10;
  static constexpr int kStages = kRoom / (2 * kTile) < 4 ? kRoom / (2 * kTile) : 4;
  static constexpr int kPairs = WARPGROUPS * 2 * kOwnTile;
  static constexpr int kOut =
      kPairs + kStages * 2 * kTile;  // 64 channels of gradients on their way
  static constexpr int kRowValues = kOut + kRows * kPitch<64> * 2;
  static constexpr int kScratch = kRowValues + (kOfKeys ? kStages * 2 * kColumns * 4 : 0);
  static constexpr int kBarriers = kScratch + WARPGROUPS * 4 * 4;
  static constexpr int kSharedBytes = kBarriers + (2 + 2 * kStages) * 8;
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 << 10, "what a multiprocessor has");
};

// The barriers of a block: `full` when copies have landed, `empty` when every warp that computes
// has read.
template <class S>
struct HopperBackwardBarriers {
  uint64_t *own_full, *own_empty, *pair_full, *pair_empty;

  __device__ __forceinline__ explicit HopperBackwardBarriers(uint8_t* shared) {
    own_full = reinterpret_cast<uint64_t*>(shared + S::kBarriers);
    own_empty = own_full + 1;
    pair_full = own_empty + 1;
    pair_empty = pair_full + S::kStages;
  }
  __device__ __forceinline__ void initialize() const {
    constexpr int kWarps = S::kComputing / 32, kLoaders = S::kOfKeys ? 2 : 1;
    ptx::mbarrier_init(own_full, 1);
    ptx::mbarrier_init(own_empty, kWarps);
    for (int i = 0; i < S::kStages; ++i) {
      ptx::mbarrier_init(pair_full + i, kLoaders);
      ptx::mbarrier_init(pair_empty + i, kWarps);
    }
    ptx::fence_mbarrier_init();
  }
};

// Calls body(unit) for the block's share of the units, the same for every thread. Of keys, `head`
// is one of k, and the columns are rows of q, of each head of its group.
template <class S, class Body>
__device__ __forceinline__ void for_each_gradient_unit(const AttentionBackwardParams& b,
                                                       const Body& body) {
  const AttentionParams& p = b.forward;
  if constexpr (S::kOfKeys) {
    for_each_item<S::kLong>(
        p, b.key_plan, b.key_plan_items, p.heads / p.group,
        [&](const Sequence& sequence, int first_key, int head_kv) {
          const int len_q = sequence.len_q, len_k = sequence.len_k, shift = len_k - len_q;
          if (first_key >= len_k) return;
          const int last_key = least(first_key + S::kRows, len_k) - 1;
          body(HopperUnit{sequence, head_kv, first_key,
                          most(first_key - shift - p.window_right, 0) / S::kColumns * S::kColumns,
                          least(len_q, last_key - shift + p.window_left + 1)});
        });
  } else {
    for_each_query_unit<S, S::kColumns>(p, body);
  }
}

// Calls body(member, first column) for the tiles of a unit, in the order in which they pass.
template <class S, class Body>
__device__ __forceinline__ void for_each_tile(const HopperUnit& unit, int members,
                                              const Body& body) {
  for (int member = 0; member < members; ++member)
    for (int column = unit.begin; column < unit.end; column += S::kColumns) body(member, column);
}

// ---- the warpgroup that loads

template <class S>
__device__ __forceinline__ void load_pairs(const HopperBackwardParams& h, uint8_t* shared) {
  constexpr int D = S::D, kBox = S::kColumns;
  const HopperBackwardBarriers<S> barriers(shared);
  const int group = h.backward.forward.group;
  const ptx::TensorMap* own_maps[2] = {S::kOfKeys ? &h.k : &h.q, S::kOfKeys ? &h.v : &h.grad_out};
  const ptx::TensorMap* maps[2] = {S::kOfKeys ? &h.q : &h.k, S::kOfKeys ? &h.grad_out : &h.v};
  RingPlace<S::kStages> place;
  uint32_t unit_parity = 0;
  for_each_gradient_unit<S>(h.backward, [&](const HopperUnit& unit) {
    if (unit.begin >= unit.end) return;
    const int own_begin = S::kOfKeys ? unit.sequence.begin_k : unit.sequence.begin_q;
    const int begin = S::kOfKeys ? unit.sequence.begin_q : unit.sequence.begin_k;
    const int first_head = S::kOfKeys ? unit.head * group : unit.head / group;
    ptx::mbarrier_wait(barriers.own_empty, unit_parity ^ 1);
    ptx::mbarrier_arrive_expect(barriers.own_full, S::kRows * D * 4);
    for (int i = 0; i < S::kRows / 32; ++i)
      load_tile<D, 64>(shared + i * S::kOwnTile, own_maps[i % 2], barriers.own_full, unit.head,
                       own_begin + unit.first_row + i / 2 * 64);
    unit_parity ^= 1;
    for_each_tile<S>(unit, S::kOfKeys ? group : 1, [&](int member, int column) {
      uint8_t* pair = shared + S::kPairs + place.stage * 2 * S::kTile;
      uint64_t* full = barriers.pair_full + place.stage;
      ptx::mbarrier_wait(barriers.pair_empty + place.stage, place.parity ^ 1);
      ptx::mbarrier_arrive_expect(full, 2 * S::kTile);
      for (int i = 0; i < 2; ++i)
        load_tile<D, S::kColumns, kBox>(pair + i * S::kTile, maps[i], full, first_head + member,
                                        begin + column);
      place.advance();
    });
  });
}

// Of keys, by one warp: per stage the logsumexp in units of log2, then delta, of the rows of q;
// those past the end get weights of 0.
template <class S>
__device__ __forceinline__ void load_row_values(const AttentionBackwardParams& b, uint8_t* shared) {
  const HopperBackwardBarriers<S> barriers(shared);
  const AttentionParams& p = b.forward;
  const int lane = threadIdx.x % 32;
  RingPlace<S::kStages> place;
  for_each_gradient_unit<S>(b, [&](const HopperUnit& unit) {
    for_each_tile<S>(unit, p.group, [&](int member, int row) {
      float* values =
          reinterpret_cast<float*>(shared + S::kRowValues) + place.stage * 2 * S::kColumns;
      const int64_t first =
          (int64_t{unit.head} * p.group + member) * p.total_q + unit.sequence.begin_q + row;
      ptx::mbarrier_wait(barriers.pair_empty + place.stage, place.parity ^ 1);
#pragma unroll
      for (int i = lane; i < S::kColumns; i += 32) {
        const bool exists = row + i < unit.sequence.len_q;
        values[i] = exists ? b.lse2[first + i] : kInfinity;
        values[S::kColumns + i] = exists ? b.delta[first + i] : 0.0f;
      }
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(barriers.pair_full + place.stage);
      place.advance();
    });
  });
}

// ---- the warpgroups that compute

// The ring as they see it. All of them wait for every tile and release it.
template <class S>
struct PairRing {
  HopperBackwardBarriers<S> barriers;
  uint8_t* pairs;
  RingPlace<S::kStages> place;

  __device__ __forceinline__ explicit PairRing(uint8_t* shared)
      : barriers(shared), pairs(shared + S::kPairs) {}

  // The tile at `place`, of which `columns` exist.
  __device__ __forceinline__ void wait(int columns) const {
    ptx::mbarrier_wait(barriers.pair_full + place.stage, place.parity);
    if (columns >= S::kColumns) return;
    uint8_t* pair = pairs + place.stage * 2 * S::kTile;
    for (int i = 0; i < 2; ++i)
      clear_rows<S::D, S::kColumns, S::kComputing>(pair + i * S::kTile, columns, threadIdx.x - 128);
    ptx::barrier_sync(1, S::kComputing);
  }
  __device__ __forceinline__ void release(uint64_t* barrier) const {
    if (S::kOfKeys) __syncwarp();  // every lane has read its numbers per row
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
  }
  // A unit of which the warpgroup has no rows: as if all had been read.
  __device__ __forceinline__ void pass(const HopperUnit& unit, int members, int length) {
    for_each_tile<S>(unit, members, [&](int, int column) {
      wait(length - column);
      __syncwarp();  // every lane has seen the barriers before one lets them move on
      release(barriers.pair_empty + place.stage);
      place.advance();
    });
    if (unit.begin < unit.end) release(barriers.own_empty);
  }
};

// The warp's 16 rows of a gradient, 64 channels at a time.
template <class S>
__device__ __forceinline__ void store_hopper_gradient(const AttentionGradient& to, uint8_t* shared,
                                                      float (&values)[1][S::D / 8][4],
                                                      int64_t token, int head, int rows,
                                                      int head_dim) {
  using T = typename S::T;
  T* tile = reinterpret_cast<T*>(shared + S::kOut) + (warp_index() - 4) * 16 * kPitch<64>;
  T* out = static_cast<T*>(to.data) + token * to.token_stride + int64_t{head} * to.head_stride;
#pragma unroll
  for (int d = 0; d < S::D; d += 64)
    store_rows<T, 64, 1>(tile, reinterpret_cast<float (&)[1][8][4]>(values[0][d / 8]), out + d,
                         to.token_stride, rows, head_dim - d);
}

// The sum over a warpgroup, in fixed order, of a number that four lanes share; for its thread 0.
template <class S>
__device__ __forceinline__ float warpgroup_sum(uint8_t* shared, float x) {
  const int warp = warp_index() - 4;
  float* sums = reinterpret_cast<float*>(shared + S::kScratch) + warp / 4 * 4;
#pragma unroll
  for (int bit = 4; bit < 32; bit *= 2) x += __shfl_xor_sync(0xffffffffu, x, bit);
  if (threadIdx.x % 32 == 0) sums[warp % 4] = x;
  ptx::barrier_sync(2 + warp / 4, 128);
  const float sum = sums[0] + sums[1] + sums[2] + sums[3];
  ptx::barrier_sync(2 + warp / 4, 128);  // the next sum overwrites these
  return sum;
}

}  // namespace taut
