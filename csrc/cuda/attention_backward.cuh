// Varlen attention, backward, on sm_80 and up: mma.sync and cp.async, no atomics, fixed order.
//
// Two tile procedures. query_gradient owns 64 queries of a head and passes over the keys: dq,
// delta, shares of the gradients of the biases. key_gradient owns 64 keys of a head of k and passes
// over the queries of its group, with transposed scores: dk and dv. Both recompute the scores; in
// both every weight moves from accumulators to the next product in registers. Sequences of up to
// kShortLength tokens are one block's work per head of k, in one launch; longer ones take a launch
// for the queries and one for the keys. On Hopper attention_hopper_backward.cuh takes all but those
// of kPackedLength.
#pragma once
#include "cuda/attention_gradient.cuh"

namespace taut {

// dq of rows [first_row, first_row + 64) of `head`.
template <class S>
__device__ __forceinline__ void query_gradient(const AttentionBackwardParams& b,
                                               const Sequence& sequence, int head, int first_row) {
  using T = typename S::T;
  constexpr int D = S::D, N = S::kKeys / 8, kWarpRows = 16;
  constexpr Scores kScores = S::kScores;
  const AttentionParams& p = b.forward;
  T* own_tiles = reinterpret_cast<T*>(dynamic_shared());
  float* scratch = reinterpret_cast<float*>(dynamic_shared() + S::kTileBytes);
  const int lane = threadIdx.x % 32, warp_row = warp_index() * kWarpRows;
  const int len_q = sequence.len_q, len_k = sequence.len_k, shift = len_k - len_q;
  const int row = first_row + warp_row, rows = len_q - row;
  const int64_t token = int64_t{sequence.begin_q} + row;
  const int64_t of_rows = int64_t{head} * p.total_q + token;
  const float slope = slope_of(p, sequence.index, head);

  const int last_row = least(first_row + S::kRows, len_q) - 1;
  const int begin = most(first_row + shift - p.window_left, 0) / S::kKeys * S::kKeys;
  const int end = least(len_k, last_row + shift + p.window_right + 1);

  const TilePairs<S, S::kRows> own{
      own_tiles,
      {p.q, sequence.begin_q, len_q, head, p.heads, 1, kOneHead},
      {b.grad_out, sequence.begin_q, len_q, head, p.heads, 1, kOneHead},
      p.head_dim};
  const TilePairs<S, S::kKeys> keys{
      own_tiles + 2 * own.kTile,
      {p.k, sequence.begin_k, len_k, head, p.heads, p.group, kOneHead},
      {p.v, sequence.begin_k, len_k, head, p.heads, p.group, kOneHead},
      p.head_dim};
  own.load(first_row);
  __syncthreads();
  const OperandRows<T, D, 1> q_rows{own_tiles + warp_row * kPitch<D>};
  const OperandRows<T, D, 1> grad_rows{q_rows.tile + own.kTile};

  // Clipping separates the softmax from what met v, and the relative bias magnifies the rounding of
  // out: both take delta from the scores, in a pass of its own.
  const bool has_relative = kScores == Scores::all && b.relative_shares != nullptr;
  const bool sums_delta = kScores == Scores::all && (p.clip || has_relative);
  float lse2[2], delta[2] = {0.0f, 0.0f};
  if (!sums_delta) output_delta<T>(b, grad_rows.tile, kPitch<D>, token, head, rows);
  rows_lse2(lse2, b, of_rows, rows);
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (!sums_delta && lane / 4 + 8 * r < rows) delta[r] = b.delta[of_rows + lane / 4 + 8 * r];

  float dq[1][D / 8][4];
  set_zero(dq);
  const int diagonal = row + shift;  // the key at distance 0 from the warp's first row
  LinearBias<N> zeros, linear;
  InsideRun run;
  const auto enter = [&](int key) {
    run = find_run<kScores, kWarpRows, S::kKeys>(slope, diagonal, p.window_left, p.window_right,
                                                 len_k, key);
    if (rows < kWarpRows) run.last = -1;
    if constexpr (kScores == Scores::alibi) linear.set(run.per_key, p.scale * kLog2E);
  };
  enter(begin);
  // With ALiBi: by how many keys the tile is behind the diagonal.
  float away = kScores == Scores::alibi ? begin - diagonal : 0.0f;
  const bool sums_slope = kScores != Scores::plain && b.slope_shares != nullptr;
  SlopeSums sums[2];
  float low = 0.0f, high = 0.0f;
  const int64_t tile =
      int64_t{sequence.begin_q / kShortRows} + sequence.index + first_row / kShortRows;
  const int64_t share_size = 2 * int64_t{p.relative_limit} + 1;
  float* share = has_relative ? b.relative_shares + (tile * p.heads + head) * share_size : nullptr;

  for (int pass = sums_delta ? 0 : 1; pass < 2; ++pass) {
    keys.pass(
        begin, end, [](int, int) {},
        [&](const T* k_tile, const T* v_tile, int, int key) {
          const int distance = diagonal - key;
          const bool inside = is_inside<kScores>(run, key);
          const bool works =
              inside || is_uniform(rows > 0 && is_visible(p, distance - (S::kKeys - 1),
                                                          distance + kWarpRows - 1));
          float s[1][N][4], dp[1][N][4];
          if (inside) {
            // Accumulators start from the biases and from -delta.
            const float scale = p.scale * kLog2E;
            float less_delta[N][4], offset[2];
            SlopeSums of_tile[2];
#pragma unroll
            for (int i = 0; i < N * 4; ++i) less_delta[i / 4][i % 4] = -delta[i % 4 / 2];
#pragma unroll
            for (int r = 0; r < 2; ++r) offset[r] = fmaf(run.per_key, away, -lse2[r]);
            multiply_rows(s, linear.start, q_rows, k_tile);
            multiply_rows(dp, less_delta, grad_rows, v_tile);
#pragma unroll
            for (int i = 0; i < N * 4; ++i) {
              float& x = s[0][i / 4][i % 4];
              const ScoreGradient d = differentiate<kScores>(p, fmaf(x, scale, offset[i % 4 / 2]),
                                                             0.0f, dp[0][i / 4][i % 4], 0.0f, 1.0f);
              if (sums_slope) of_tile[i % 4 / 2].add(d, i / 4 * 8 + i % 2);
              x = d.dproduct;
            }
#pragma unroll
            for (int r = 0; r < 2; ++r)
              sums[r].add(of_tile[r], run.in_front ? 1.0f : -1.0f,
                          lane / 4 + 8 * r - lane % 4 * 2 - away);
          } else if (works) {
            multiply_rows(s, zeros.start, q_rows, k_tile);
            multiply_rows(dp, zeros.start, grad_rows, v_tile);
#pragma unroll
            for (int n = 0; n < N; ++n) {
              float keep[4] = {1.0f, 1.0f, 1.0f, 1.0f};
              if (kScores == Scores::all && p.dropout)
                keep_factors(keep, p, head, sequence.begin_q + row, key + n * 8);
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const int column = n * 8 + lane % 4 * 2 + i % 2, r = i / 2;
                const int apart = distance + lane / 4 + 8 * r - column;
                const float x = edge_exponent<kScores>(p, s[0][n][i], head, slope, apart,
                                                       key + column < len_k, lse2[r]);
                const ScoreGradient d =
                    differentiate<kScores>(p, x, s[0][n][i], dp[0][n][i], delta[r], keep[i]);
                if (kScores == Scores::all && pass == 0) delta[r] += d.soft * d.dsoft;
                if (sums_slope) sums[r].add(d, fabsf(static_cast<float>(apart)));
                s[0][n][i] = d.dproduct;
                dp[0][n][i] = d.dscore;
              }
            }
          }
          if (works && pass == 1) multiply_weights<T, D>(dq, s, k_tile);
          if (!inside) enter(key + S::kKeys);
          if (kScores == Scores::alibi) away += S::kKeys;
          if (has_relative && pass == 1) {
#pragma unroll
            for (int i = 0; i < N * 4; ++i) {
              const int column = i / 4 * 8 + lane % 4 * 2 + i % 2,
                        own_row = lane / 4 + i % 4 / 2 * 8;
              scratch[(warp_row + own_row) * (S::kKeys + 1) + column] =
                  works ? dp[0][i / 4][i % 4] : 0.0f;
            }
            __syncthreads();
            add_diagonals<S>(scratch, share, p.relative_limit, key - first_row - shift, low, high);
          }
        });
    if (kScores == Scores::all && pass == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        delta[r] = row_sum(delta[r]);
        const int own_row = lane / 4 + 8 * r;
        if (lane % 4 == 0 && own_row < rows) b.delta[of_rows + own_row] = delta[r];
        sums[r] = {};
      }
    }
  }

  if (sums_slope) {
    // A row of dscores sums to zero but for the rounding of delta, which distances would magnify.
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      sum -= row_sum(sums[r].far) - row_sum(sums[r].residue) * row_sum(sums[r].mean_far);
    sum = block_sum(scratch, lane % 4 == 0 ? sum : 0.0f);
    if (threadIdx.x == 0) b.slope_shares[tile * p.heads + head] = sum;
  }
  if (has_relative) {
    const float sum_low = block_sum(scratch, low), sum_high = block_sum(scratch, high);
    if (threadIdx.x == 0) {
      share[0] += sum_low;
      share[share_size - 1] += sum_high;
    }
  }
  if (rows > 0) {
    float factor[1][2] = {{p.scale, p.scale}};
    scale_rows(dq, factor);
    store_gradient<S>(b.dq, own_tiles + warp_row * kPitch<D>, dq, token, head, rows, p.head_dim);
  }
  __syncthreads();  // the next tile overwrites these
}

// dk and dv, or one of them, of keys [first_key, first_key + 64) of `head_kv`.
template <class S, bool kDk, bool kDv>
__device__ __forceinline__ void key_gradient(const AttentionBackwardParams& b,
                                             const Sequence& sequence, int head_kv, int first_key) {
  using T = typename S::T;
  constexpr int D = S::D, N = S::kQueries / 8, kWarpRows = 16;
  constexpr Scores kScores = S::kScores;
  const AttentionParams& p = b.forward;
  T* own_tiles = reinterpret_cast<T*>(dynamic_shared());
  // Per stage: logsumexp in units of log2, then delta, of the tile's queries.
  float* row_values = reinterpret_cast<float*>(dynamic_shared() + S::kTileBytes);
  const int lane = threadIdx.x % 32, warp_row = warp_index() * kWarpRows;
  const int len_q = sequence.len_q, len_k = sequence.len_k, shift = len_k - len_q;
  const int key = first_key + warp_row, rows = len_k - key;

  const int last_key = least(first_key + S::kRows, len_k) - 1;
  const int begin = most(first_key - shift - p.window_right, 0) / S::kQueries * S::kQueries;
  const int end = least(len_q, last_key - shift + p.window_left + 1);

  const int heads_kv = p.heads / p.group;
  const TilePairs<S, S::kRows> own{own_tiles,
                                   {p.k, sequence.begin_k, len_k, head_kv, heads_kv, 1, kOneHead},
                                   {p.v, sequence.begin_k, len_k, head_kv, heads_kv, 1, kOneHead},
                                   p.head_dim};
  own.load(first_key);
  const OperandRows<T, D, 1> k_rows{own_tiles + warp_row * kPitch<D>};
  const OperandRows<T, D, 1> v_rows{k_rows.tile + own.kTile};

  float dk[1][kDk ? D / 8 : 1][4], dv[1][kDv ? D / 8 : 1][4];
  set_zero(dk);
  set_zero(dv);
  const int diagonal = key - shift;  // the row at distance 0 from the warp's first key
  LinearBias<N> zeros, linear;
  InsideRun run;
  float away = 0.0f;  // with ALiBi: by how many rows the tile is behind the diagonal
  for (int member = 0; member < p.group; ++member) {
    const int head = head_kv * p.group + member;
    const float slope = slope_of(p, sequence.index, head);
    const TilePairs<S, S::kQueries> queries{
        own_tiles + 2 * own.kTile,
        {p.q, sequence.begin_q, len_q, head, p.heads, 1, kOneHead},
        {b.grad_out, sequence.begin_q, len_q, head, p.heads, 1, kOneHead},
        p.head_dim};
    const auto enter = [&](int row) {
      run = find_run<kScores, kWarpRows, S::kQueries>(slope, diagonal, p.window_right,
                                                      p.window_left, len_q, row);
      if (rows < kWarpRows) run.last = -1;
      if constexpr (kScores == Scores::alibi) {
        linear.set(run.per_key, p.scale * kLog2E);
        away = row - diagonal;
      }
    };
    enter(begin);
    const int64_t of_head = int64_t{head} * p.total_q + sequence.begin_q;
    const auto start_row_values = [&](int stage, int row) {
      const int i = threadIdx.x % S::kQueries, which = threadIdx.x / S::kQueries;
      if (which > 1) return;
      const float* source = (which == 0 ? b.lse2 : b.delta) + of_head + row + i;
      ptx::cp_async<4>(row_values + (2 * stage + which) * S::kQueries + i, source,
                       row + i < len_q ? 4 : 0);
    };
    queries.pass(
        begin, end, start_row_values, [&](const T* q_tile, const T* grad_tile, int stage, int row) {
          const float* lse2 = row_values + 2 * stage * S::kQueries;
          const float* delta = lse2 + S::kQueries;
          const int distance = row - diagonal;
          const bool inside = is_inside<kScores>(run, row);
          if (!inside && !is_uniform(rows > 0 && is_visible(p, distance - (kWarpRows - 1),
                                                            distance + S::kQueries - 1)))
            return enter(row + S::kQueries);
          float s[1][N][4], dp[1][N][4];
          set_zero(dp);
          if constexpr (kDk) multiply_rows(dp, zeros.start, v_rows, grad_tile);
          const auto differentiate_tile = [&](const auto& exponent) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
              float keep[4] = {1.0f, 1.0f, 1.0f, 1.0f};
              if (kScores == Scores::all && p.dropout)
                keep_factors_transposed(keep, p, head, sequence.begin_q + row + n * 8, key);
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const int column = n * 8 + lane % 4 * 2 + i % 2, own_row = lane / 4 + i / 2 * 8;
                const float x = exponent(s[0][n][i], own_row, column);
                const ScoreGradient d =
                    differentiate<kScores>(p, x, s[0][n][i], dp[0][n][i], delta[column], keep[i]);
                s[0][n][i] = d.weight;
                dp[0][n][i] = d.dproduct;
              }
            }
          };
          if (inside) {
            const float scale = p.scale * kLog2E;
            const float bias = run.per_key * away;
            multiply_rows(s, linear.start, k_rows, q_tile);
            differentiate_tile([&](float product, int, int column) {
              return fmaf(product, scale, bias - lse2[column]);
            });
          } else {
            multiply_rows(s, zeros.start, k_rows, q_tile);
            differentiate_tile([&](float& product, int own_row, int column) {
              return edge_exponent<kScores>(p, product, head, slope, distance + column - own_row,
                                            own_row < rows && row + column < len_q, lse2[column]);
            });
          }
          if constexpr (kDv) multiply_weights<T, D>(dv, s, grad_tile);
          if constexpr (kDk) multiply_weights<T, D>(dk, dp, q_tile);
          if (!inside)
            enter(row + S::kQueries);
          else if (kScores == Scores::alibi)
            away += S::kQueries;
        });
  }

  __syncthreads();  // also where no query came: K and V of other threads are complete
  if (rows > 0) {
    const int64_t token = int64_t{sequence.begin_k} + key;
    T* tile = own_tiles + warp_row * kPitch<D>;
    if constexpr (kDk) {
      float factor[1][2] = {{p.scale, p.scale}};
      scale_rows(dk, factor);
      store_gradient<S>(b.dk, tile, dk, token, head_kv, rows, p.head_dim);
    }
    if constexpr (kDv) store_gradient<S>(b.dv, tile, dv, token, head_kv, rows, p.head_dim);
  }
  __syncthreads();  // the next tile overwrites these
}

// A unit of work: tiles [begin, end) of a sequence and head of k. First come the tiles of queries,
// of one head of the group after the other, then those of keys.
struct BackwardUnit {
  int sequence = -1, head_kv = 0, begin = 0, end = 0;  // sequence < 0: nothing to do
};

__device__ __forceinline__ int tiles_of(int length) {
  return (length + kShortRows - 1) / kShortRows;
}

// A short sequence whole, or one tile of a long one.
__device__ __forceinline__ BackwardUnit find_unit(const AttentionBackwardParams& b, int64_t index) {
  const AttentionParams& p = b.forward;
  const bool is_short = b.phase == BackwardPhase::short_sequences;
  const bool of_keys = b.phase == BackwardPhase::keys;
  const int all = ptx::opaque(p.heads);  // opaque: registers are for the tiles
  const int heads = b.phase == BackwardPhase::queries ? all : all / p.group;
  const int head = index % heads, halves = is_short ? 1 : kLongRows / kShortRows;
  const int64_t part = index / heads;
  const Item item = plan_item(of_keys ? b.key_plan : p.plan,
                              part / halves + (is_short ? p.plan_items : 0), p.batch);
  if (item.sequence < 0) return {};
  const Sequence s = find_sequence(p, item.sequence);
  const int tiles_q = tiles_of(s.len_q), of_queries = p.group * tiles_q;
  if (is_short) {
    if (most(s.len_q, s.len_k) > (p.on_hopper ? kPackedLength : kShortLength)) return {};
    return {item.sequence, head, 0, of_queries + tiles_of(s.len_k)};
  }
  const int row = item.first_row + static_cast<int>(part % halves) * kShortRows;
  if (row >= (of_keys ? s.len_k : s.len_q)) return {};
  const int before = of_keys ? of_queries : head % p.group * tiles_q;
  const int tile = before + row / kShortRows;
  return {item.sequence, of_keys ? head : head / p.group, tile, tile + 1};
}

__device__ __forceinline__ int64_t count_units(const AttentionBackwardParams& b) {
  constexpr int kHalves = kLongRows / kShortRows;
  const AttentionParams& p = b.forward;
  const int heads_kv = ptx::opaque(p.heads) / p.group;
  switch (b.phase) {
    case BackwardPhase::short_sequences: return int64_t{p.batch} * heads_kv;
    case BackwardPhase::queries:
      return int64_t{clamp(p.plan[kPlanLong], 0, p.plan_items)} * kHalves * p.heads;
    default: return int64_t{clamp(b.key_plan[kPlanLong], 0, b.key_plan_items)} * kHalves * heads_kv;
  }
}

// All phases are the same code: kernels take long to compile. The first also clears what belongs to
// no sequence.
template <class S>
__global__ void __launch_bounds__(S::kThreads)
    attention_backward_kernel(const __grid_constant__ AttentionBackwardParams b) {
  using T = typename S::T;
  const AttentionParams& p = b.forward;
  for (int64_t index = blockIdx.x; index < count_units(b); index += gridDim.x) {
    const BackwardUnit unit = find_unit(b, index);
    for (int tile = unit.begin; tile < unit.end; ++tile) {
      // Read anew, and so are the units counted: registers are for the tiles.
      const Sequence sequence = find_sequence(p, unit.sequence);
      const int tiles_q = tiles_of(sequence.len_q), key_tile = tile - p.group * tiles_q;
      if (key_tile < 0) {
        const int head = unit.head_kv * p.group + tile / tiles_q;
        query_gradient<S>(b, sequence, head, tile % tiles_q * kShortRows);
      } else if constexpr (S::kSplits) {
        key_gradient<S, true, false>(b, sequence, unit.head_kv, key_tile * kShortRows);
        key_gradient<S, false, true>(b, sequence, unit.head_kv, key_tile * kShortRows);
      } else {
        key_gradient<S, true, true>(b, sequence, unit.head_kv, key_tile * kShortRows);
      }
    }
  }
  if (b.phase != BackwardPhase::short_sequences) return;
  const int heads_kv = p.heads / p.group;
  clear_gradient<T>(b.dq, p.plan, p.total_q, p.heads, p.head_dim);
  clear_gradient<T>(b.dk, b.key_plan, p.total_k, heads_kv, p.head_dim);
  clear_gradient<T>(b.dv, b.key_plan, p.total_k, heads_kv, p.head_dim);
}

}  // namespace taut
