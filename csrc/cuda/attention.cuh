// Varlen attention, forward, on sm_80 and up: mma.sync and cp.async.
//
// A block takes items of the plan in turn. An item is a tile of queries of one head (or, for short
// sequences, of two or four heads: see attention_params.h); its warps own 16 M rows each and pass
// over the keys in tiles of kKeys with an online softmax. One K and one V tile are in shared
// memory: V travels while the scores are computed, the next K while they meet V.
//
// A tile of scores is one of two kinds. Inside: no end, no limit and no change of sign of the
// distance crosses it. Then a score is one product-sum behind the matrix product; ALiBi, there
// linear in the key, is what the accumulators start from and one number per row. Edge: everything
// by element.
#pragma once
#include "cuda/attention_softmax.cuh"

namespace taut {

template <class T_, int D_, int WARPS, int M_, Scores kScores_>
struct ForwardShape {
  using T = T_;
  static constexpr int D = D_, M = M_;
  static constexpr Scores kScores = kScores_;
  static constexpr int kThreads = 32 * WARPS, kRows = 16 * M * WARPS;
  static constexpr int kKeys = D > 128 ? 32 : 64, N = kKeys / 8;
  // Steps of 16 channels of Q that stay in registers, where there are enough.
  static constexpr int kHeldQ = D > 64 || (M > 1 && kScores == Scores::alibi) ? 0 : D / 16;
  static constexpr bool kPacksHeads = kRows == kKeys;  // tiles of several heads
  static constexpr int kSharedBytes = (kRows + 2 * kKeys) * kPitch<D> * 2;
  // Blocks per multiprocessor that registers must allow.
  static constexpr int kBlocks = M == 1 && D <= 64 && kScores == Scores::plain ? 3 : 1;

  // Of a score in columns 8 n to 8 n + 7.
  static __device__ __forceinline__ float exp2(float x, int) { return ptx::exp2_approx(x); }
};

// What a warp works on: its rows are [row, row + 16 M) of the sequence.
struct WarpRows {
  int head, row, shift;  // shift: len_k - len_q
  float slope;
};

// Scores s -> x in units of log2, -inf for hidden keys. `distance` is that of row 0 and column 0.
template <class S>
__device__ __forceinline__ void edge_scores(float (&s)[S::M][S::N][4], const AttentionParams& p,
                                            const WarpRows& w, int distance, int keys) {
  const int lane = threadIdx.x % 32;
  const float scale = p.scale * kLog2E, slope = w.slope * kLog2E;
  const int left = p.window_left, right = p.window_right;  // read once
#pragma unroll
  for (int m = 0; m < S::M; ++m) {
#pragma unroll
    for (int n = 0; n < S::N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        const int apart = distance + m * 16 + lane / 4 + i / 2 * 8 - column;
        float x = s[m][n][i] * scale;
        if (S::kScores == Scores::alibi) x -= slope * fabsf(static_cast<float>(apart));
        if (S::kScores == Scores::all) {
          if (p.softcap > 0) x = kLog2E * soft_capped(s[m][n][i] * p.scale, p.softcap);
          x += score_bias(p, w.slope, w.head, apart);
        }
        s[m][n][i] = column < keys && apart <= left && apart >= -right ? x : -kInfinity;
      }
    }
  }
}

template <int M, int D>
__device__ __forceinline__ void scale_rows(float (&o)[M][D][4], const float (&factor)[M][2]) {
#pragma unroll
  for (int i = 0; i < M * D * 4; ++i)
    o[i / 4 / D][i / 4 % D][i % 4] *= factor[i / 4 / D][i % 4 / 2];
}

// x = scale * s + slope * away, away that of the first 16 rows -> weights; `o` follows the rows'
// bases.
template <class S>
__device__ __forceinline__ void online_softmax(float (&s)[S::M][S::N][4],
                                               float (&o)[S::M][S::D / 8][4], RowState<S::M>& state,
                                               float scale, float slope, float away) {
  float of_rows[S::M][2], offset[S::M][2], shrink[S::M][2];
#pragma unroll
  for (int i = 0; i < 2 * S::M; ++i) of_rows[i / 2][i % 2] = away - i / 2 * 16;
  if (move_bases<S>(s, state, offset, shrink, scale, slope, of_rows)) scale_rows(o, shrink);
  weigh_scores<S>(s, state, scale, offset);
}

// The second pass of the clipped softmax: scores -> clipped probabilities, given the logsumexp.
template <class S>
__device__ __forceinline__ void clipped_softmax(float (&s)[S::M][S::N][4], const AttentionParams& p,
                                                const float (&logsumexp)[S::M][2]) {
#pragma unroll
  for (int m = 0; m < S::M; ++m) {
#pragma unroll
    for (int n = 0; n < S::N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = s[m][n][i];
        const float soft = ptx::exp2_approx(x - logsumexp[m][i / 2]);
        const float stretched = fmaf(p.clip_slope, soft, p.clip_offset);
        s[m][n][i] = x == -kInfinity ? 0.0f : fminf(fmaxf(stretched, 0.0f), 1.0f);
      }
    }
  }
}

// Rows of a warp, through its own rows of a tile in shared memory, to rows of `out` (tokens, heads,
// head_dim) in 16-byte chunks.
template <class T, int D, int M>
__device__ __forceinline__ void store_rows(T* tile, const float (&o)[M][D / 8][4], T* out,
                                           int64_t token_stride, int rows, int head_dim) {
  const int lane = threadIdx.x % 32;
  __syncwarp();  // all lanes have read what the tile held
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      T* target = tile + (m * 16 + lane / 4) * kPitch<D> + d * 8 + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(target) = ptx::pack<T>(o[m][d][0], o[m][d][1]);
      *reinterpret_cast<uint32_t*>(target + 8 * kPitch<D>) = ptx::pack<T>(o[m][d][2], o[m][d][3]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int chunk = lane; chunk < 16 * M * (D / 8); chunk += 32) {
    const int row = chunk / (D / 8), column = chunk % (D / 8) * 8;
    if (row < rows && column < head_dim)
      *reinterpret_cast<uint4*>(out + row * token_stride + column) =
          *reinterpret_cast<const uint4*>(tile + row * kPitch<D> + column);
  }
}

// One item: rows from first_row on of `head`, or all rows of 64 >> log2_rows heads from `head` on.
template <class S>
__device__ __forceinline__ void attend(const AttentionParams& p, const Sequence& sequence, int head,
                                       int first_row, int log2_rows) {
  using T = typename S::T;
  constexpr int D = S::D, M = S::M, N = S::N;
  T* q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* k_tile = q_tile + S::kRows * kPitch<D>;
  T* v_tile = k_tile + S::kKeys * kPitch<D>;
  const int lane = threadIdx.x % 32, warp_row = warp_index() * 16 * M;
  const int item_rows = 1 << log2_rows, tile_row = warp_row & ~(item_rows - 1);
  const int len_q = sequence.len_q, len_k = sequence.len_k;

  WarpRows w;
  w.head = head + (warp_row >> log2_rows);
  w.row = first_row + warp_row - tile_row;
  w.shift = len_k - len_q;
  const bool busy = w.row < len_q && w.head < p.heads;
  w.slope = busy ? slope_of(p, sequence.index, w.head) : 0.0f;

  const int last_row = least(first_row + item_rows, len_q) - 1;
  const int begin = most(first_row + w.shift - p.window_left, 0) / S::kKeys * S::kKeys;
  const int end = least(len_k, last_row + w.shift + p.window_right + 1);

  const RowCopies<T, D, S::kRows, S::kThreads> q_rows(p.q, sequence.begin_q, len_q, head, p.heads,
                                                      1, log2_rows);
  using KeyCopies = RowCopies<T, D, S::kKeys, S::kThreads>;
  const KeyCopies k_rows(p.k, sequence.begin_k, len_k, head, p.heads, p.group, log2_rows);
  const KeyCopies v_rows(p.v, sequence.begin_k, len_k, head, p.heads, p.group, log2_rows);
  const auto start_keys = [&](const KeyCopies& rows, T* tile, int key) {
    rows.start(tile, key, p.head_dim);
    ptx::cp_async_commit();
  };

  float o[M][D / 8][4];
  set_zero(o);
  RowState<M> state;
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    state.base[i / 2][i % 2] = kNoBase;
    state.sum[i / 2][i % 2] = 0.0f;
  }
  float logsumexp[M][2];
  OperandRows<T, D, M, S::kHeldQ> q_operands(q_tile + warp_row * kPitch<D>);

  const int diagonal = w.row + w.shift;  // the key at distance 0 from the warp's first row
  LinearBias<N> zeros, linear;
  InsideRun run;
  const auto enter = [&](int key) {
    run = find_run<S::kScores, 16 * M, S::kKeys>(w.slope, diagonal, p.window_left, p.window_right,
                                                 len_k, key);
    if (!busy) run.last = -1;
    if constexpr (S::kScores == Scores::alibi) linear.set(run.per_key, p.scale * kLog2E);
  };
  enter(begin);
  // With ALiBi: by how many keys the tile is behind the diagonal.
  float away = S::kScores == Scores::alibi ? begin - diagonal : 0.0f;

  const bool clips = S::kScores == Scores::all && p.clip;
  for (int pass = 0; pass < (clips ? 2 : 1) && begin < end; ++pass) {
    if (pass == 0) q_rows.start(q_tile, first_row, p.head_dim);
    start_keys(k_rows, k_tile, begin);
    if (pass == 0) {
      ptx::cp_async_wait<0>();
      q_rows.add_bias(q_tile, p.head_dim);
      __syncthreads();  // Q is complete
      q_operands.hold();
    }
    for (int key = begin; key < end; key += S::kKeys) {
      const int distance = diagonal - key;  // of the warp's first row and the first key
      const bool inside = is_inside<S::kScores>(run, key);
      const auto crosses = [&] {
        return is_uniform(busy &&
                          is_visible(p, distance - (S::kKeys - 1), distance + (16 * M - 1)));
      };
      const auto pairs = [&] { return least((len_k - key + 15) >> 4, N / 2); };

      ptx::cp_async_wait<0>();
      k_rows.add_bias(k_tile, p.head_dim);
      __syncthreads();  // K is complete, and nobody reads V any more
      start_keys(v_rows, v_tile, key);

      float s[M][N][4];
      const int tile_key = log2_rows < 6 ? tile_row : 0;  // where this head's keys are in the tile
      if (inside) {
        multiply_rows(s, linear.start, q_operands, k_tile);
        online_softmax<S>(s, o, state, p.scale * kLog2E, run.per_key, away);
      } else if (crosses()) {
        multiply_rows(s, zeros.start, q_operands, k_tile + tile_key * kPitch<D>, pairs());
        edge_scores<S>(s, p, w, distance, len_k - key);
        if (pass == 0) {
          online_softmax<S>(s, o, state, 1.0f, 0.0f, away);
        } else {
          clipped_softmax<S>(s, p, logsumexp);
        }
        if (S::kScores == Scores::all && p.dropout) {
#pragma unroll
          for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
              float keep[4];
              keep_factors(keep, p, w.head, sequence.begin_q + w.row + m * 16, key + n * 8);
#pragma unroll
              for (int i = 0; i < 4; ++i) s[m][n][i] *= keep[i];
            }
          }
        }
      }

      ptx::cp_async_wait<0>();
      v_rows.add_bias(v_tile, p.head_dim);
      __syncthreads();  // V is complete, and nobody reads K any more
      if (key + S::kKeys < end) start_keys(k_rows, k_tile, key + S::kKeys);
      if (inside) {
        multiply_weights<T, D>(o, s, v_tile);
      } else {
        if ((!clips || pass == 1) && crosses())
          multiply_weights<T, D>(o, s, v_tile + tile_key * kPitch<D>, pairs());
        if (S::kScores != Scores::all && key + S::kKeys < end) enter(key + S::kKeys);
      }
      if (S::kScores == Scores::alibi) away += S::kKeys;
    }
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      float& sum = state.sum[i / 2][i % 2];
      if (pass == 0) sum = row_sum(sum);
      logsumexp[i / 2][i % 2] = state.base[i / 2][i % 2] + ptx::log2_approx(sum);
    }
    if (clips) __syncthreads();  // the next pass loads K and V anew
  }

  if (busy) {
    const int rows = len_q - w.row;
    const int64_t token = int64_t{sequence.begin_q} + w.row;
    float factor[M][2];
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const float sum = state.sum[i / 2][i % 2];
      const int row = i / 2 * 16 + lane / 4 + i % 2 * 8;
      factor[i / 2][i % 2] = sum == 0.0f ? 0.0f : clips ? 1.0f : 1.0f / sum;
      if (lane % 4 == 0 && row < rows)
        p.logsumexp[int64_t{w.head} * p.total_q + token + row] =
            sum == 0.0f ? -kInfinity : logsumexp[i / 2][i % 2] * kLn2;
    }
    scale_rows(o, factor);
    T* out = static_cast<T*>(p.out) + (token * p.heads + w.head) * p.head_dim;
    store_rows<T, D, M>(q_tile + warp_row * kPitch<D>, o, out, int64_t{p.heads} * p.head_dim, rows,
                        p.head_dim);
  }
  __syncthreads();  // the next item writes over the tiles
}

// Rows of q that belong to no sequence: zeros, and -inf for logsumexp; NaN everywhere when
// cu_seqlens is malformed.
template <class T>
__device__ __forceinline__ void clear_rest(const AttentionParams& p) {
  const int used = clamp(p.plan[kPlanUsed], 0, p.total_q);
  const int64_t rest = p.total_q - used, thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  const bool malformed = p.plan[kPlanError] != kPlanFine;
  const uint32_t fill = malformed ? 0x7fff7fffu : 0u;  // NaN in bf16 and in fp16
  uint4* out =
      reinterpret_cast<uint4*>(static_cast<T*>(p.out) + int64_t{used} * p.heads * p.head_dim);
  const int64_t chunks = rest * p.heads * (p.head_dim / 8);
  for (int64_t i = thread; i < chunks; i += threads) out[i] = make_uint4(fill, fill, fill, fill);
  for (int64_t i = thread; i < rest * p.heads; i += threads)
    p.logsumexp[i / rest * p.total_q + used + i % rest] =
        malformed ? __uint_as_float(0x7fffffffu) : -kInfinity;
}

// Tiles of kLongRows rows: the long sequences.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    attention_long_kernel(const __grid_constant__ AttentionParams p) {
  static_assert(S::kRows == kLongRows, "a block takes an item of a long sequence whole");
  // Counted anew for every unit, as below.
  const auto units = [&] { return int64_t{clamp(p.plan[kPlanLong], 0, p.plan_items)} * p.heads; };
  for (int64_t unit = blockIdx.x; unit < units(); unit += gridDim.x) {
    const Item item = plan_item(p.plan, unit / p.heads, p.batch);
    if (item.sequence < 0) continue;
    const Sequence sequence = find_sequence(p, item.sequence);
    if (item.first_row >= sequence.len_q) continue;
    attend<S>(p, sequence, unit % p.heads, item.first_row, 7);
  }
}

// A plan's item and the first head of a tile of 64 >> log2_rows heads; index < 0: none left.
struct ShortUnit {
  int index, head, log2_rows;
};

// Counted anew for every unit (`opaque`): registers are for the tiles.
template <class S, bool kTakesLong>
__device__ __forceinline__ ShortUnit find_short_unit(const AttentionParams& p, int64_t unit) {
  const int last = clamp(p.plan[kPlanFour], 0, p.plan_items);
  const int first = p.on_hopper  ? clamp(p.plan[kPlanOne], 0, last)
                    : kTakesLong ? 0
                                 : clamp(p.plan[kPlanLong], 0, last);
  const int one = S::kPacksHeads ? clamp(p.plan[kPlanOne], first, last) : last;
  const int two = S::kPacksHeads ? clamp(p.plan[kPlanTwo], one, last) : last;
  const int heads = ptx::opaque(p.heads), pairs = (heads + 1) / 2, fours = (heads + 3) / 4;
  const int64_t end_one = int64_t{one - first} * heads;
  const int64_t end_two = end_one + int64_t{two - one} * pairs;
  if (unit >= end_two + int64_t{last - two} * fours) return {-1, 0, 6};
  const bool is_one = !S::kPacksHeads || unit < end_one, is_two = unit < end_two;
  const int log2_rows = is_one ? 6 : is_two ? 5 : 4;
  const int per_item = is_one ? heads : is_two ? pairs : fours;
  const int64_t within = unit - (is_one ? 0 : is_two ? end_one : end_two);
  const int index = (is_one ? first : is_two ? one : two) + within / per_item;
  return {index, static_cast<int>(within % per_item) * (64 >> log2_rows), log2_rows};
}

// Tiles of kShortRows rows: the short sequences, and the long ones unless attention_long_kernel
// takes them; on Hopper only what its kernels leave. Also what belongs to no sequence.
template <class S, bool kTakesLong>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    attention_short_kernel(const __grid_constant__ AttentionParams p) {
  static_assert(S::kRows == kShortRows, "a block takes an item of a short sequence whole");
  for (int64_t i = blockIdx.x;; i += gridDim.x) {
    const ShortUnit unit = find_short_unit<S, kTakesLong>(p, i);
    if (unit.index < 0) break;
    const Item item = plan_item(p.plan, unit.index, p.batch);
    if (item.sequence < 0) continue;
    const Sequence sequence = find_sequence(p, item.sequence);
    const int length = most(sequence.len_q, sequence.len_k);
    // A plan of other cu_seqlens.
    if (unit.log2_rows < 6 && length > 1 << unit.log2_rows) continue;
    const int rows = kTakesLong && length > kShortLength ? kLongRows : kShortRows;
    const int end = least(item.first_row + rows, sequence.len_q);
    for (int row = item.first_row; row < end; row += kShortRows)
      attend<S>(p, sequence, unit.head, row, unit.log2_rows);
  }
  clear_rest<typename S::T>(p);  // last: loops of single threads in front cost warps' convergence
}

}  // namespace taut
