// Varlen attention, forward, on Hopper (sm_90a): wgmma, with operands brought by the copy engine.
//
// A block takes items of the plan in turn, of the class of long sequences (128 rows of one head) or
// of the class one (64 rows). Its first warpgroup loads: one thread sends for Q once per item and
// for tiles of K and V, into rings of kStages. The other warpgroups own 64 rows each and compute;
// the register budget goes to them. Where a tile of K ends, another sequence may follow: its scores
// are hidden, and its rows of V are cleared in shared memory, as they may hold NaN.
//
// Softmax and products overlap within a warpgroup: while the weights of one tile come from its
// scores, the weights of the tile before meet V; and the other warpgroup is anywhere in between.
//
// ALiBi inside tiles (see attention.cuh) is one more product: 16 more channels, in which the rows
// of Q hold the slope and the rows of K their own number, and one number per row.
#pragma once
#include "cuda/attention.cuh"
#include "cuda/attention_hopper_tiles.cuh"

namespace taut {

// WARPGROUPS compute: 2 on items of long sequences, 1 on those of the class one.
template <class T_, int D_, int WARPGROUPS, Scores kScores_>
struct HopperShape {
  using T = T_;
  static constexpr int D = D_, M = 1;
  static constexpr Scores kScores = kScores_;
  static_assert(D == 64 || D == 128, "Q, K and V are tiles of 64 channels");
  static constexpr bool kLong = WARPGROUPS == 2;
  static constexpr int kRows = 64 * WARPGROUPS, kKeys = kRows, N = kKeys / 8;
  static constexpr int kComputing = 128 * WARPGROUPS, kThreads = 128 + kComputing;
  static constexpr int kStages = D == 64 ? 3 : 2;
  // Registers per thread: what a launch with kBlocks per multiprocessor gives to all is
  // (kLoaderRegisters + WARPGROUPS kRegisters) / (1 + WARPGROUPS).
  static constexpr int kBlocks = kLong ? 1 : D == 64 ? 3 : 2;
  static constexpr int kLoaderRegisters = 24;
  static constexpr int kRegisters = kLong ? 240 : D == 64 ? 136 : 232;

  // Bytes in shared memory. A tile is D / 64 columns of rows of 128 bytes, swizzled.
  static constexpr int kTile = kKeys * D * 2;
  static constexpr int kQ = 0, kK = kRows * D * 2, kV = kK + kStages * kTile;
  static constexpr int kOut = kV + kStages * kTile;  // rows of the output on their way
  static constexpr int kNumbers = kOut + kRows * kPitch<D> * 2;
  static constexpr int kBarriers = kNumbers + (kScores == Scores::alibi ? kKeys * 32 : 0);
  static constexpr int kSharedBytes = kBarriers + (2 + 4 * kStages) * 8;

  // Of a score in columns 8 n to 8 n + 7. At D = 64 the products of a tile of 64 x 128 scores take
  // the tensor cores 512 cycles and its exponentials as many: one of 8 goes to multiply-adds. At
  // 128 there is time.
  static __device__ __forceinline__ float exp2(float x, int n) {
    return D == 64 && n % 8 == 7 ? exp2_by_fma(x) : ptx::exp2_approx(x);
  }
};

// The barriers of a block: `full` when copies have landed, `empty` when every warp that computes
// has read.
template <class S>
struct HopperBarriers {
  uint64_t *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;

  __device__ __forceinline__ explicit HopperBarriers(uint8_t* shared) {
    q_full = reinterpret_cast<uint64_t*>(shared + S::kBarriers);
    q_empty = q_full + 1;
    k_full = q_empty + 1;
    k_empty = k_full + S::kStages;
    v_full = k_empty + S::kStages;
    v_empty = v_full + S::kStages;
  }
  __device__ __forceinline__ void initialize() const {
    constexpr int kWarps = S::kComputing / 32;
    ptx::mbarrier_init(q_full, 1);
    ptx::mbarrier_init(q_empty, kWarps);
    for (int i = 0; i < S::kStages; ++i) {
      ptx::mbarrier_init(k_full + i, 1);
      ptx::mbarrier_init(k_empty + i, kWarps);
      ptx::mbarrier_init(v_full + i, 1);
      ptx::mbarrier_init(v_empty + i, kWarps);
    }
    ptx::fence_mbarrier_init();
  }
};

// ---- the warpgroup that loads

template <class S>
__device__ __forceinline__ void load_units(const HopperParams& h, uint8_t* shared) {
  const HopperBarriers<S> barriers(shared);
  const AttentionParams& p = h.attention;
  RingPlace<S::kStages> place;
  uint32_t unit_parity = 0;
  for_each_query_unit<S, S::kKeys>(p, [&](const HopperUnit& unit) {
    if (unit.begin >= unit.end) return;
    const int head_kv = unit.head / p.group;
    ptx::mbarrier_wait(barriers.q_empty, unit_parity ^ 1);
    ptx::mbarrier_arrive_expect(barriers.q_full, S::kRows * S::D * 2);
    load_tile<S::D, S::kRows>(shared + S::kQ, &h.q, barriers.q_full, unit.head,
                              unit.sequence.begin_q + unit.first_row);
    unit_parity ^= 1;
    for (int key = unit.begin; key < unit.end; key += S::kKeys, place.advance()) {
      const int i = place.stage, token = unit.sequence.begin_k + key;
      ptx::mbarrier_wait(barriers.k_empty + i, place.parity ^ 1);
      ptx::mbarrier_arrive_expect(barriers.k_full + i, S::kTile);
      load_tile<S::D, S::kKeys>(shared + S::kK + i * S::kTile, &h.k, barriers.k_full + i, head_kv,
                                token);
      ptx::mbarrier_wait(barriers.v_empty + i, place.parity ^ 1);
      ptx::mbarrier_arrive_expect(barriers.v_full + i, S::kTile);
      load_tile<S::D, S::kKeys>(shared + S::kV + i * S::kTile, &h.v, barriers.v_full + i, head_kv,
                                token);
    }
  });
}

// ---- the warpgroups that compute

// Starts s = Q K^T, and with ALiBi + slope . numbers, for a warpgroup's 64 rows.
template <class S>
__device__ __forceinline__ void start_scores(float (&s)[1][S::N][4], uint64_t q, uint64_t k,
                                             uint64_t numbers, const uint32_t (&slope)[4]) {
  ptx::wgmma_fence();
  start_rows<typename S::T, S::D, S::kRows>(s, q, k);
  if constexpr (S::kScores == Scores::alibi) ptx::wgmma_rs<bf16>(flat(s), slope, numbers, true);
  ptx::wgmma_commit();
}

// Starts o += weights V.
template <class S>
__device__ __forceinline__ void start_values(float (&o)[1][S::D / 8][4],
                                             const uint32_t (&weights)[S::N / 2][4], uint64_t v) {
  ptx::wgmma_fence();
  start_sums<typename S::T, S::D>(o, weights, v);
  ptx::wgmma_commit();
}

// ALiBi inside tiles: row r of the tile of numbers holds r in channels 0 to 2 and r - (kKeys - 1)
// in 3 to 5, the distance from the key nearest to the diagonal on either side of it, so that the
// nearest keys, which weigh most, get the smallest numbers.
template <class S>
__device__ __forceinline__ void write_key_numbers(uint8_t* numbers) {
  for (int i = threadIdx.x; i < S::kKeys * 2; i += S::kThreads) {
    const int row = i / 2, half = i % 2;
    const float first = half == 0 ? row : 0, last = half == 0 ? row - (S::kKeys - 1) : 0;
    *reinterpret_cast<uint4*>(numbers + row / 8 * 256 + half * 128 + row % 8 * 16) =
        make_uint4(ptx::pack<bf16>(first, first), ptx::pack<bf16>(first, last),
                   ptx::pack<bf16>(last, last), 0);
  }
}

// The words of A fragments whose rows meet those numbers with the slope, a sum of three bf16: in
// front of the diagonal scores rise by it per key, behind they fall.
struct SlopeWords {
  uint32_t rising, falling;

  __device__ __forceinline__ explicit SlopeWords(float slope) {
    const int t = threadIdx.x % 4;
    const float high = ptx::to_float(ptx::from_float<bf16>(slope));
    const float middle = ptx::to_float(ptx::from_float<bf16>(slope - high));
    const float low = slope - high - middle;
    rising = t == 1 ? ptx::pack<bf16>(0.0f, high) : t == 2 ? ptx::pack<bf16>(middle, low) : 0;
    falling = t == 0 ? ptx::pack<bf16>(-high, -middle) : t == 1 ? ptx::pack<bf16>(-low, 0.0f) : 0;
  }
};

template <class S>
__device__ __forceinline__ void compute_unit(const AttentionParams& p, const HopperUnit& unit,
                                             uint8_t* shared, RingPlace<S::kStages>& place,
                                             uint32_t q_parity) {
  using T = typename S::T;
  constexpr int D = S::D, N = S::N, kKeys = S::kKeys;
  const HopperBarriers<S> barriers(shared);
  const int lane = threadIdx.x % 32, warp = warp_index() - 4, group = warp / 4;
  const int len_q = unit.sequence.len_q, len_k = unit.sequence.len_k;
  const int group_row = unit.first_row + group * 64;

  const auto release = [&](uint64_t* barrier) {
    if (lane == 0) ptx::mbarrier_arrive(barrier);
  };
  const auto wait_values = [&](const RingPlace<S::kStages>& at) {
    ptx::mbarrier_wait(barriers.v_full + at.stage, at.parity);
  };
  // The tile of V in which the sequence may end: clears the rows of no key.
  const auto wait_last_values = [&](const RingPlace<S::kStages>& at, int key) {
    wait_values(at);
    if (key + kKeys <= len_k) return;
    clear_rows<D, kKeys, S::kComputing>(shared + S::kV + at.stage * S::kTile, len_k - key,
                                        threadIdx.x - 128);
    ptx::barrier_sync(1, S::kComputing);
  };

  if (unit.begin < unit.end) ptx::mbarrier_wait(barriers.q_full, q_parity);
  if (group_row >= len_q) {  // nothing to compute: as if all had been read
    for (int key = unit.begin; key < unit.end; key += kKeys, place.advance()) {
      ptx::mbarrier_wait(barriers.k_full + place.stage, place.parity);
      wait_last_values(place, key);
      __syncwarp();  // every lane has seen the barriers before one lets them move on
      release(barriers.k_empty + place.stage);
      release(barriers.v_empty + place.stage);
    }
    if (unit.begin < unit.end) release(barriers.q_empty);
    return;
  }

  WarpRows w;
  w.head = unit.head;
  w.row = group_row + warp % 4 * 16;
  w.shift = len_k - len_q;
  w.slope = slope_of(p, unit.sequence.index, unit.head);
  RowState<1> state{{{kNoBase, kNoBase}}, {{0.0f, 0.0f}}};
  float s[1][N][4], o[1][D / 8][4], shrink[1][2];
  uint32_t weights[N / 2][4], slope[4];
  set_zero(o);

  const uint64_t q_rows = tile_descriptor(shared + S::kQ + group * 64 * 128, S::kRows);
  const uint64_t k_tiles = tile_descriptor(shared + S::kK, kKeys);
  const uint64_t v_tiles = tile_descriptor(shared + S::kV, kKeys);
  const uint64_t numbers =
      kept_descriptor(ptx::matrix_descriptor(shared + S::kNumbers, 128, 256, ptx::Swizzle::none));

  const int diagonal = group_row + w.shift;  // the key at distance 0 from the warpgroup's first row
  InsideRun run;
  float away[1][2] = {};  // with ALiBi: by how many keys number 0 is behind a row's diagonal
  bool inside;            // of the tile last started
  const auto enter = [&](int key) {
    run = find_run<S::kScores, 64, kKeys>(w.slope, diagonal, p.window_left, p.window_right, len_k,
                                          key);
    if constexpr (S::kScores == Scores::alibi) {
      const SlopeWords words(w.slope / p.scale);
      slope[0] = slope[1] = run.in_front ? words.rising : words.falling;
      slope[2] = slope[3] = 0;
      away[0][0] = key + (run.in_front ? kKeys - 1 : 0) - w.row - w.shift - lane / 4;
      away[0][1] = away[0][0] - 8.0f;
    }
  };
  enter(unit.begin);
  const auto start = [&](int key) {
    inside = is_inside<S::kScores>(run, key);
    if constexpr (S::kScores == Scores::alibi) {
      if (!inside) slope[0] = slope[1] = 0;
      ptx::hold_registers(slope);
    }
    ptx::mbarrier_wait(barriers.k_full + place.stage, place.parity);
    start_scores<S>(s, q_rows, ptx::descriptor_after(k_tiles, place.stage * S::kTile), numbers,
                    slope);
  };
  // The scores of the tile of `key` have come -> weights; what move_bases says.
  const auto weigh = [&](int key) {
    ptx::hold_registers(flat(s));
    release(barriers.k_empty + place.stage);
    if (key + kKeys >= unit.end) release(barriers.q_empty);
    float factor = p.scale * kLog2E, per_key = run.per_key, offset[1][2];
    if (!inside) {
      edge_scores<S>(s, p, w, w.row + w.shift - key, len_k - key);
      factor = 1.0f;
      per_key = 0.0f;
    }
    const bool moved = move_bases<S>(s, state, offset, shrink, factor, per_key, away);
    if (!inside) {
      enter(key + kKeys);
    } else if (S::kScores == Scores::alibi) {
      away[0][0] += kKeys;
      away[0][1] += kKeys;
    }
    weigh_scores<S>(s, state, factor, offset);
    ptx::hold_registers(flat(s));  // now, while V is under way
    return moved;
  };
  const auto pack = [&] {
    pack_weights<T>(weights, s);
    ptx::hold_registers(flat(o));
  };

  if (unit.begin < unit.end) {
    start(unit.begin);
    ptx::wgmma_wait<0>();
    weigh(unit.begin);
    pack();
    RingPlace<S::kStages> values = place;  // the tile of V that meets `weights`
    place.advance();
    int key = unit.begin + kKeys;
    for (; key < unit.end; key += kKeys) {
      start(key);
      wait_values(values);
      start_values<S>(o, weights, ptx::descriptor_after(v_tiles, values.stage * S::kTile));
      ptx::wgmma_wait<1>();
      // Two places to wait, as ptxas moves a single one in front of the softmax.
      if (weigh(key)) {
        ptx::wgmma_wait<0>();
        ptx::hold_registers(flat(o));
        scale_rows(o, shrink);
      } else {
        ptx::wgmma_wait<0>();
        ptx::hold_registers(flat(o));
      }
      release(barriers.v_empty + values.stage);
      pack();
      values = place;
      place.advance();
    }
    wait_last_values(values, key - kKeys);
    start_values<S>(o, weights, ptx::descriptor_after(v_tiles, values.stage * S::kTile));
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(o));
    release(barriers.v_empty + values.stage);
  }

  const int rows = len_q - w.row;
  const int64_t token = int64_t{unit.sequence.begin_q} + w.row;
  float factor[1][2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = row_sum(state.sum[0][r]);
    const int row = lane / 4 + r * 8;
    factor[0][r] = sum == 0.0f ? 0.0f : 1.0f / sum;
    if (lane % 4 == 0 && row < rows)
      p.logsumexp[int64_t{w.head} * p.total_q + token + row] =
          (state.base[0][r] + ptx::log2_approx(sum)) * kLn2;  // -inf without keys
  }
  scale_rows(o, factor);
  store_rows<T, D, 1>(reinterpret_cast<T*>(shared + S::kOut) + warp * 16 * kPitch<D>, o,
                      static_cast<T*>(p.out) + (token * p.heads + w.head) * p.head_dim,
                      int64_t{p.heads} * p.head_dim, rows, p.head_dim);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    attention_hopper_kernel(const __grid_constant__ HopperParams h) {
  uint8_t* shared = dynamic_shared();
  if (threadIdx.x == 0) HopperBarriers<S>(shared).initialize();
  if constexpr (S::kScores == Scores::alibi) {
    write_key_numbers<S>(shared + S::kNumbers);
    ptx::fence_async_shared();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::set_max_registers_down<S::kLoaderRegisters>();
    if (threadIdx.x == 0) load_units<S>(h, shared);
  } else {
    ptx::set_max_registers_up<S::kRegisters>();
    RingPlace<S::kStages> place;
    uint32_t q_parity = 0;
    for_each_query_unit<S, S::kKeys>(h.attention, [&](const HopperUnit& unit) {
      compute_unit<S>(h.attention, unit, shared, place, q_parity);
      q_parity ^= unit.begin < unit.end;
    });
  }
}

}  // namespace taut
