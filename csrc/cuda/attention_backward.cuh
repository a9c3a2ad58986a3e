// Varlen attention, backward, on sm_80 and up: mma.sync and cp.async, no atomics, fixed order.
//
// Two tile procedures. query_gradient owns 64 queries of a head and passes over the keys: dq,
// delta, shares of the gradients of the biases. key_gradient owns 64 keys of a head of k and passes
// over the queries of its group, with transposed scores: dk and dv. Both recompute the scores; in
// both every weight moves from accumulators to the next product in registers. Sequences of up to
// kShortLength tokens are one block's work per head of k, in one launch; longer ones take a launch
// for the queries and one for the keys.
#pragma once
#include <type_traits>

#include "cuda/attention.cuh"

namespace taut {

template <class T_, int D_, Scores kScores_>
struct BackwardShape {
  using T = T_;
  static constexpr int D = D_, kThreads = 128, kRows = kShortRows;
  static constexpr Scores kScores = kScores_;
  // Columns of a tile of scores in the two procedures: what registers and shared memory allow.
  static constexpr int kKeys = D <= 64 ? 64 : D <= 128 ? 32 : 16;
  static constexpr int kQueries = D <= 64 ? 64 : D <= 128 ? 32 : 16;
  static constexpr bool kSplits = D > 128;  // dk and dv in turns
  static constexpr int kTileBytes = 2 * (kRows + kKeys) * kPitch<D> * 2;
  static constexpr int kScratchFloats = kScores == Scores::all ? kRows * (kKeys + 1) : 2 * kQueries;
  static constexpr int kSharedBytes = kTileBytes + kScratchFloats * 4;
  static_assert(kQueries == kKeys, "both procedures lay out shared memory alike");
};

// One score, differentiated.
struct ScoreGradient {
  float soft;      // its softmax
  float weight;    // what v was multiplied by
  float dsoft;     // the gradient of the softmax
  float dscore;    // of the score with its biases
  float dproduct;  // of scale * q . k
};

// s = q . k, dp = grad_out . v. Inside, all cells are visible and `slope` has the sign of distance.
template <Scores kScores, bool kInside>
__device__ __forceinline__ ScoreGradient differentiate(const AttentionParams& p, float s, float dp,
                                                       int head, float slope, int distance,
                                                       bool exists, float lse2, float delta,
                                                       float keep) {
  const bool visible = kInside || (exists && is_visible(p, distance));
  const float apart = static_cast<float>(distance);
  float capped = s * p.scale;
  if (kScores == Scores::all && p.softcap > 0) capped = soft_capped(capped, p.softcap);
  float x = fmaf(capped, kLog2E, -lse2);
  if (kScores == Scores::alibi) x -= slope * kLog2E * (kInside ? apart : fabsf(apart));
  if (kScores == Scores::all) x += score_bias(p, slope, head, distance);
  ScoreGradient d;
  d.soft = visible ? ptx::exp2_approx(x) : 0.0f;
  d.weight = d.soft;
  d.dsoft = dp;
  if (kScores == Scores::all) {
    d.dsoft *= keep;
    if (p.clip) {
      const float stretched = visible ? fmaf(p.clip_slope, d.soft, p.clip_offset) : 0.0f;
      d.weight = fminf(fmaxf(stretched, 0.0f), 1.0f);
      d.dsoft = visible && stretched == d.weight ? d.dsoft * p.clip_slope : 0.0f;
    }
    d.weight *= keep;
  }
  d.dscore = d.soft * (d.dsoft - delta);
  d.dproduct = d.dscore;
  if (kScores == Scores::all && p.softcap > 0) {
    const float ratio = capped / p.softcap;
    d.dproduct *= 1.0f - ratio * ratio;
  }
  return d;
}

// logsumexp in units of log2; +inf, which gives weights of 0, for rows that see no key or are none.
__device__ __forceinline__ float load_lse2(const AttentionParams& p, int64_t offset, bool exists) {
  const float lse = exists ? p.logsumexp[offset] : -kInfinity;
  return lse == -kInfinity ? kInfinity : lse * kLog2E;
}

// delta of the warp's 16 rows from out . grad_out, eight lanes per row.
template <class S>
__device__ __forceinline__ void output_delta(const AttentionBackwardParams& b,
                                             const typename S::T* grad_tile, int64_t token,
                                             int head, int rows) {
  using T = typename S::T;
  const int lane = threadIdx.x % 32, head_dim = b.forward.head_dim;
  const T* out = static_cast<const T*>(b.out.data) + token * b.out.token_stride +
                 int64_t{head} * b.out.head_stride;
  for (int row = lane / 8; row < 16; row += 4) {
    float sum = 0.0f;
    for (int column = lane % 8 * 8; column < head_dim && row < rows; column += 64) {
      const uint4 x =
          *reinterpret_cast<const uint4*>(out + int64_t{row} * b.out.token_stride + column);
      const uint4 y = *reinterpret_cast<const uint4*>(grad_tile + row * kPitch<S::D> + column);
      const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum = fmaf(ptx::low_of<T>(xs[i]), ptx::low_of<T>(ys[i]), sum);
        sum = fmaf(ptx::high_of<T>(xs[i]), ptx::high_of<T>(ys[i]), sum);
      }
    }
#pragma unroll
    for (int bit = 1; bit < 8; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    if (lane % 8 == 0 && row < rows) b.delta[int64_t{head} * b.forward.total_q + token + row] = sum;
  }
  __syncwarp();
}

// Adds the sums of a tile's score gradients along its diagonals to the tile's share of the relative
// bias; those clamped to the ends gather in `low` and `high`. Thread x owns diagonal x: key - row =
// x - 63. All threads of the block; `scratch` is free again after the next barrier.
template <class S>
__device__ __forceinline__ void add_diagonals(const float* scratch, float* share, int limit,
                                              int offset, float& low, float& high) {
  const int x = threadIdx.x;
  if (x >= S::kRows + S::kKeys - 1) return;
  float sum = 0.0f;
  for (int row = 0; row < S::kRows; ++row) {
    const int column = row + x - (S::kRows - 1);
    if (column >= 0 && column < S::kKeys) sum += scratch[row * (S::kKeys + 1) + column];
  }
  const int place = offset + x - (S::kRows - 1);
  if (place <= -limit) {
    low += sum;
  } else if (place >= limit) {
    high += sum;
  } else {
    share[place + limit] += sum;
  }
}

// The sum of x over the block, the same in every run; for thread 0. `scratch`: 128 floats.
__device__ __forceinline__ float block_sum(float* scratch, float x) {
  __syncthreads();
  scratch[threadIdx.x] = x;
  __syncthreads();
  float sum = 0.0f;
  if (threadIdx.x == 0)
    for (int i = 0; i < 128; ++i) sum += scratch[i];
  return sum;
}

// dq of rows [first_row, first_row + 64) of `head`.
template <class S>
__device__ __forceinline__ void query_gradient(const AttentionBackwardParams& b,
                                               const Sequence& sequence, int head, int first_row) {
  using T = typename S::T;
  constexpr int D = S::D, N = S::kKeys / 8, kWarpRows = 16;
  const AttentionParams& p = b.forward;
  T* q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* grad_tile = q_tile + S::kRows * kPitch<D>;
  T* k_tile = grad_tile + S::kRows * kPitch<D>;
  T* v_tile = k_tile + S::kKeys * kPitch<D>;
  float* scratch = reinterpret_cast<float*>(v_tile + S::kKeys * kPitch<D>);
  const int lane = threadIdx.x % 32, warp_row = warp_index() * kWarpRows;
  const int len_q = sequence.len_q, len_k = sequence.len_k, shift = len_k - len_q;
  const int row = first_row + warp_row, rows = len_q - row;
  const int64_t token = int64_t{sequence.begin_q} + row;
  const float slope = slope_of(p, sequence.index, head);

  const int last_row = least(first_row + S::kRows, len_q) - 1;
  const int begin = most(first_row + shift - p.window_left, 0) / S::kKeys * S::kKeys;
  const int end = least(len_k, last_row + shift + p.window_right + 1);

  auto q_rows = tile_rows<T>(p.q, sequence.begin_q, len_q, head, p.heads, 1, 31);
  auto grad_rows = tile_rows<T>(b.grad_out, sequence.begin_q, len_q, head, p.heads, 1, 31);
  q_rows.token = grad_rows.token = first_row;
  load_rows<T, D, S::kRows, S::kThreads, false>(q_tile, q_rows, p.head_dim);
  load_rows<T, D, S::kRows, S::kThreads, false>(grad_tile, grad_rows, p.head_dim);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  add_bias<T, D, S::kRows, S::kThreads>(q_tile, q_rows, p.head_dim);
  __syncthreads();

  // Clipping separates the softmax from what met v, and the relative bias magnifies the rounding of
  // out: both take delta from the scores, in a pass of its own.
  const bool has_relative = S::kScores == Scores::all && b.relative_shares != nullptr;
  const bool sums_delta = S::kScores == Scores::all && (p.clip || has_relative);
  float lse2[2], delta[2] = {0.0f, 0.0f};
  if (!sums_delta) output_delta<S>(b, grad_tile + warp_row * kPitch<D>, token, head, rows);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int own = lane / 4 + 8 * r;
    const int64_t offset = int64_t{head} * p.total_q + token + own;
    lse2[r] = load_lse2(p, offset, own < rows);
    if (!sums_delta && own < rows) delta[r] = b.delta[offset];
  }

  float dq[1][D / 8][4];
  set_zero(dq);
  // Of the slope's gradient: sums over keys of dscore * |distance|, softmax * |distance|, dscore.
  float far[2] = {0.0f, 0.0f}, mean_far[2] = {0.0f, 0.0f}, residue[2] = {0.0f, 0.0f};
  float low = 0.0f, high = 0.0f;
  const int64_t tile =
      int64_t{sequence.begin_q / kShortRows} + sequence.index + first_row / kShortRows;
  const int64_t share_size = 2 * int64_t{p.relative_limit} + 1;
  float* share = has_relative ? b.relative_shares + (tile * p.heads + head) * share_size : nullptr;

  for (int pass = sums_delta ? 0 : 1; pass < 2; ++pass) {
    for (int key = begin; key < end; key += S::kKeys) {
      auto k_rows = tile_rows<T>(p.k, sequence.begin_k, len_k, head, p.heads, p.group, 31);
      auto v_rows = tile_rows<T>(p.v, sequence.begin_k, len_k, head, p.heads, p.group, 31);
      k_rows.token = v_rows.token = key;
      if (key + S::kKeys <= len_k) {
        load_rows<T, D, S::kKeys, S::kThreads, true>(k_tile, k_rows, p.head_dim);
        load_rows<T, D, S::kKeys, S::kThreads, true>(v_tile, v_rows, p.head_dim);
      } else {
        load_rows<T, D, S::kKeys, S::kThreads, false>(k_tile, k_rows, p.head_dim);
        load_rows<T, D, S::kKeys, S::kThreads, false>(v_tile, v_rows, p.head_dim);
      }
      ptx::cp_async_commit();
      ptx::cp_async_wait<0>();
      add_bias<T, D, S::kKeys, S::kThreads>(k_tile, k_rows, p.head_dim);
      add_bias<T, D, S::kKeys, S::kThreads>(v_tile, v_rows, p.head_dim);
      __syncthreads();

      const int distance = row + shift - key;
      const int nearest = distance - (S::kKeys - 1), farthest = distance + kWarpRows - 1;
      const bool works =
          is_uniform(rows > 0 && farthest >= -p.window_right && nearest <= p.window_left);
      bool inside = S::kScores != Scores::all && key + S::kKeys <= len_k && rows >= kWarpRows &&
                    nearest >= -p.window_right && farthest <= p.window_left;
      if (S::kScores == Scores::alibi) inside = inside && (nearest >= 0 || farthest <= 0);
      inside = is_uniform(inside);
      float s[1][N][4], dp[1][N][4];
      set_zero(s);
      set_zero(dp);
      if (works) {
        multiply_rows<T, D>(s, SharedRows<T, D, 1>{q_tile + warp_row * kPitch<D>}, k_tile);
        multiply_rows<T, D>(dp, SharedRows<T, D, 1>{grad_tile + warp_row * kPitch<D>}, v_tile);
        const auto differentiate_tile = [&](auto is_inside) {
          constexpr bool kInside = decltype(is_inside)::value;
          const float signed_slope = kInside && nearest < 0 ? -slope : slope;
#pragma unroll
          for (int n = 0; n < N; ++n) {
            float keep[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (S::kScores == Scores::all && p.dropout)
              keep_factors(keep, p, head, sequence.begin_q + row, key + n * 8);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int column = n * 8 + lane % 4 * 2 + i % 2, r = i / 2;
              const int apart = distance + lane / 4 + 8 * r - column;
              const ScoreGradient d = differentiate<S::kScores, kInside>(
                  p, s[0][n][i], dp[0][n][i], head, signed_slope, apart, key + column < len_k,
                  lse2[r], delta[r], keep[i]);
              if (S::kScores == Scores::all && pass == 0) delta[r] += d.soft * d.dsoft;
              if (S::kScores != Scores::plain && b.slope_shares != nullptr) {
                const float away = fabsf(static_cast<float>(apart));
                far[r] = fmaf(d.dscore, away, far[r]);
                mean_far[r] = fmaf(d.soft, away, mean_far[r]);
                residue[r] += d.dscore;
              }
              s[0][n][i] = d.dproduct;
              dp[0][n][i] = d.dscore;
            }
          }
        };
        if (inside) {
          differentiate_tile(std::true_type{});
        } else {
          differentiate_tile(std::false_type{});
        }
        if (pass == 1) multiply_weights<T, D>(dq, s, k_tile);
      }
      if (S::kScores == Scores::all && has_relative && pass == 1) {
#pragma unroll
        for (int i = 0; i < N * 4; ++i) {
          const int column = i / 4 * 8 + lane % 4 * 2 + i % 2, own = lane / 4 + i % 4 / 2 * 8;
          scratch[(warp_row + own) * (S::kKeys + 1) + column] = dp[0][i / 4][i % 4];
        }
        __syncthreads();
        add_diagonals<S>(scratch, share, p.relative_limit, key - first_row - shift, low, high);
      }
      __syncthreads();  // the next K and V overwrite these
    }
    if (S::kScores == Scores::all && pass == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        delta[r] = row_sum(delta[r]);
        const int own = lane / 4 + 8 * r;
        if (lane % 4 == 0 && own < rows)
          b.delta[int64_t{head} * p.total_q + token + own] = delta[r];
        far[r] = mean_far[r] = residue[r] = 0.0f;
      }
    }
  }

  if (S::kScores != Scores::plain && b.slope_shares != nullptr) {
    // A row of dscores sums to zero but for the rounding of delta, which distances would magnify.
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float row_far = row_sum(far[r]), row_mean = row_sum(mean_far[r]);
      sum -= row_far - row_sum(residue[r]) * row_mean;
    }
    sum = block_sum(reinterpret_cast<float*>(k_tile), lane % 4 == 0 ? sum : 0.0f);
    if (threadIdx.x == 0) b.slope_shares[tile * p.heads + head] = sum;
  }
  if (has_relative) {
    const float sum_low = block_sum(reinterpret_cast<float*>(k_tile), low);
    const float sum_high = block_sum(reinterpret_cast<float*>(k_tile), high);
    if (threadIdx.x == 0) {
      share[0] += sum_low;
      share[share_size - 1] += sum_high;
    }
  }
  if (rows > 0) {
    float factor[1][2] = {{p.scale, p.scale}};
    scale_rows(dq, factor);
    T* out =
        static_cast<T*>(b.dq.data) + token * b.dq.token_stride + int64_t{head} * b.dq.head_stride;
    store_rows<T, D, 1>(q_tile + warp_row * kPitch<D>, dq, out, b.dq.token_stride, rows,
                        p.head_dim);
  }
  __syncthreads();  // the next tile overwrites these
}

// dk and dv, or one of them, of keys [first_key, first_key + 64) of `head_kv`.
template <class S, bool kDk, bool kDv>
__device__ __forceinline__ void key_gradient(const AttentionBackwardParams& b,
                                             const Sequence& sequence, int head_kv, int first_key) {
  using T = typename S::T;
  constexpr int D = S::D, N = S::kQueries / 8, kWarpRows = 16;
  const AttentionParams& p = b.forward;
  T* k_tile = reinterpret_cast<T*>(dynamic_shared());
  T* v_tile = k_tile + S::kRows * kPitch<D>;
  T* q_tile = v_tile + S::kRows * kPitch<D>;
  T* grad_tile = q_tile + S::kQueries * kPitch<D>;
  float* lse2 = reinterpret_cast<float*>(grad_tile + S::kQueries * kPitch<D>);
  float* delta = lse2 + S::kQueries;
  const int lane = threadIdx.x % 32, warp_row = warp_index() * kWarpRows;
  const int len_q = sequence.len_q, len_k = sequence.len_k, shift = len_k - len_q;
  const int key = first_key + warp_row, rows = len_k - key;

  const int last_key = least(first_key + S::kRows, len_k) - 1;
  const int begin = most(first_key - shift - p.window_right, 0) / S::kQueries * S::kQueries;
  const int end = least(len_q, last_key - shift + p.window_left + 1);

  const int heads_kv = p.heads / p.group;
  auto k_rows = tile_rows<T>(p.k, sequence.begin_k, len_k, head_kv, heads_kv, 1, 31);
  auto v_rows = tile_rows<T>(p.v, sequence.begin_k, len_k, head_kv, heads_kv, 1, 31);
  k_rows.token = v_rows.token = first_key;
  load_rows<T, D, S::kRows, S::kThreads, false>(k_tile, k_rows, p.head_dim);
  load_rows<T, D, S::kRows, S::kThreads, false>(v_tile, v_rows, p.head_dim);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  add_bias<T, D, S::kRows, S::kThreads>(k_tile, k_rows, p.head_dim);
  add_bias<T, D, S::kRows, S::kThreads>(v_tile, v_rows, p.head_dim);

  float dk[1][kDk ? D / 8 : 1][4], dv[1][kDv ? D / 8 : 1][4];
  set_zero(dk);
  set_zero(dv);
  for (int member = 0; member < p.group; ++member) {
    const int head = head_kv * p.group + member;
    const float slope = slope_of(p, sequence.index, head);
    for (int row = begin; row < end; row += S::kQueries) {
      auto q_rows = tile_rows<T>(p.q, sequence.begin_q, len_q, head, p.heads, 1, 31);
      auto grad_rows = tile_rows<T>(b.grad_out, sequence.begin_q, len_q, head, p.heads, 1, 31);
      q_rows.token = grad_rows.token = row;
      if (row + S::kQueries <= len_q) {
        load_rows<T, D, S::kQueries, S::kThreads, true>(q_tile, q_rows, p.head_dim);
        load_rows<T, D, S::kQueries, S::kThreads, true>(grad_tile, grad_rows, p.head_dim);
      } else {
        load_rows<T, D, S::kQueries, S::kThreads, false>(q_tile, q_rows, p.head_dim);
        load_rows<T, D, S::kQueries, S::kThreads, false>(grad_tile, grad_rows, p.head_dim);
      }
      ptx::cp_async_commit();
      if (threadIdx.x < S::kQueries) {
        const bool exists = row + static_cast<int>(threadIdx.x) < len_q;
        const int64_t offset = int64_t{head} * p.total_q + sequence.begin_q + row + threadIdx.x;
        lse2[threadIdx.x] = load_lse2(p, offset, exists);
        delta[threadIdx.x] = exists ? b.delta[offset] : 0.0f;
      }
      ptx::cp_async_wait<0>();
      add_bias<T, D, S::kQueries, S::kThreads>(q_tile, q_rows, p.head_dim);
      __syncthreads();

      const int distance = row + shift - key;
      const int nearest = distance - (kWarpRows - 1), farthest = distance + S::kQueries - 1;
      const bool works =
          is_uniform(rows > 0 && farthest >= -p.window_right && nearest <= p.window_left);
      bool inside = S::kScores != Scores::all && row + S::kQueries <= len_q && rows >= kWarpRows &&
                    nearest >= -p.window_right && farthest <= p.window_left;
      if (S::kScores == Scores::alibi) inside = inside && (nearest >= 0 || farthest <= 0);
      inside = is_uniform(inside);
      if (works) {
        float s[1][N][4], dp[1][N][4];
        set_zero(s);
        set_zero(dp);
        multiply_rows<T, D>(s, SharedRows<T, D, 1>{k_tile + warp_row * kPitch<D>}, q_tile);
        if constexpr (kDk)
          multiply_rows<T, D>(dp, SharedRows<T, D, 1>{v_tile + warp_row * kPitch<D>}, grad_tile);
        const auto differentiate_tile = [&](auto is_inside) {
          constexpr bool kInside = decltype(is_inside)::value;
          const float signed_slope = kInside && nearest < 0 ? -slope : slope;
#pragma unroll
          for (int n = 0; n < N; ++n) {
            float keep[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (S::kScores == Scores::all && p.dropout)
              keep_factors_transposed(keep, p, head, sequence.begin_q + row + n * 8, key);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int column = n * 8 + lane % 4 * 2 + i % 2, own = lane / 4 + i / 2 * 8;
              const ScoreGradient d = differentiate<S::kScores, kInside>(
                  p, s[0][n][i], dp[0][n][i], head, signed_slope, distance + column - own,
                  own < rows && row + column < len_q, lse2[column], delta[column], keep[i]);
              s[0][n][i] = d.weight;
              dp[0][n][i] = d.dproduct;
            }
          }
        };
        if (inside) {
          differentiate_tile(std::true_type{});
        } else {
          differentiate_tile(std::false_type{});
        }
        if constexpr (kDv) multiply_weights<T, D>(dv, s, grad_tile);
        if constexpr (kDk) multiply_weights<T, D>(dk, dp, q_tile);
      }
      __syncthreads();  // the next Q and gradient overwrite these
    }
  }

  __syncthreads();  // also where no query came: K and V of other threads are complete
  if (rows > 0) {
    const int64_t token = int64_t{sequence.begin_k} + key;
    T* tile = k_tile + warp_row * kPitch<D>;
    const auto write = [&](const AttentionGradient& to, float (&values)[1][D / 8][4]) {
      T* out =
          static_cast<T*>(to.data) + token * to.token_stride + int64_t{head_kv} * to.head_stride;
      store_rows<T, D, 1>(tile, values, out, to.token_stride, rows, p.head_dim);
    };
    if constexpr (kDk) {
      float factor[1][2] = {{p.scale, p.scale}};
      scale_rows(dk, factor);
      write(b.dk, dk);
    }
    if constexpr (kDv) write(b.dv, dv);
  }
  __syncthreads();  // the next tile overwrites these
}

template <class S>
__device__ __forceinline__ void key_gradients(const AttentionBackwardParams& b,
                                              const Sequence& sequence, int head_kv,
                                              int first_key) {
  if constexpr (S::kSplits) {
    key_gradient<S, true, false>(b, sequence, head_kv, first_key);
    key_gradient<S, false, true>(b, sequence, head_kv, first_key);
  } else {
    key_gradient<S, true, true>(b, sequence, head_kv, first_key);
  }
}

// Rows of a gradient behind the last sequence: zeros, or NaN where cu_seqlens is malformed.
template <class T>
__device__ __forceinline__ void clear_gradient(const AttentionGradient& to, const int32_t* plan,
                                               int total, int heads, int head_dim) {
  const int used = clamp(plan[kPlanUsed], 0, total);
  const uint32_t fill = plan[kPlanError] == kPlanFine ? 0u : 0x7fff7fffu;
  const int chunks = head_dim / 8;
  const int64_t count = int64_t{total - used} * heads * chunks;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / chunks;
    T* out = static_cast<T*>(to.data) + (used + row / heads) * to.token_stride +
             row % heads * to.head_stride + i % chunks * 8;
    *reinterpret_cast<uint4*>(out) = make_uint4(fill, fill, fill, fill);
  }
}

// Short sequences: everything of one sequence and head of k. Also what belongs to no sequence.
template <class S>
__device__ __forceinline__ void short_gradients(const AttentionBackwardParams& b) {
  using T = typename S::T;
  const AttentionParams& p = b.forward;
  const int heads_kv = p.heads / p.group;
  clear_gradient<T>(b.dq, p.plan, p.total_q, p.heads, p.head_dim);
  clear_gradient<T>(b.dk, b.key_plan, p.total_k, heads_kv, p.head_dim);
  clear_gradient<T>(b.dv, b.key_plan, p.total_k, heads_kv, p.head_dim);
  const int64_t units = int64_t{p.batch} * heads_kv;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Item item = plan_item(p.plan, p.plan_items + unit / heads_kv, p.batch);
    if (item.sequence < 0) continue;
    const Sequence sequence = find_sequence(p, item.sequence);
    if (most(sequence.len_q, sequence.len_k) > kShortLength) continue;
    const int head_kv = unit % heads_kv;
    for (int member = 0; member < p.group; ++member)
      for (int row = 0; row < sequence.len_q; row += S::kRows)
        query_gradient<S>(b, sequence, head_kv * p.group + member, row);
    for (int key = 0; key < sequence.len_k; key += S::kRows)
      key_gradients<S>(b, sequence, head_kv, key);
  }
}

// Calls body(sequence, first row, head) for the tiles of 64 rows of long sequences. `heads` are
// those of the side that `plan` lists.
template <class Body>
__device__ __forceinline__ void for_long_tiles(const AttentionParams& p, const int32_t* plan,
                                               int plan_items, int heads, const Body& body) {
  constexpr int kHalves = kLongRows / kShortRows;
  const int64_t units = int64_t{clamp(plan[kPlanLong], 0, plan_items)} * kHalves * heads;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t half = unit / heads;
    const Item item = plan_item(plan, half / kHalves, p.batch);
    if (item.sequence < 0) continue;
    const int first = item.first_row + static_cast<int>(half % kHalves) * kShortRows;
    body(find_sequence(p, item.sequence), first, static_cast<int>(unit % heads));
  }
}

// A kernel has the code of all phases: kernels take minutes to compile, and two blocks fit on a
// multiprocessor in any case.
template <class S>
__global__ void __launch_bounds__(S::kThreads)
    attention_backward_kernel(const __grid_constant__ AttentionBackwardParams b) {
  const AttentionParams& p = b.forward;
  switch (b.phase) {
    case BackwardPhase::short_sequences: return short_gradients<S>(b);
    case BackwardPhase::queries:
      return for_long_tiles(p, p.plan, p.plan_items, p.heads,
                            [&](const Sequence& sequence, int row, int head) {
                              if (row < sequence.len_q) query_gradient<S>(b, sequence, head, row);
                            });
    case BackwardPhase::keys:
      return for_long_tiles(p, b.key_plan, b.key_plan_items, p.heads / p.group,
                            [&](const Sequence& sequence, int key, int head_kv) {
                              if (key < sequence.len_k) key_gradients<S>(b, sequence, head_kv, key);
                            });
  }
}

}  // namespace taut
