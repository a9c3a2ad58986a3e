// Varlen attention, backward, on Hopper (sm_90a): wgmma, with operands brought by the copy engine.
//
// The two procedures of attention_backward.cuh, a kernel each: dq by tiles of queries, then dk and
// dv by tiles of keys with transposed scores; no atomics, fixed order. A block takes items of the
// plan in turn, of the class of long sequences (128 rows of one head) or of the class one (64
// rows). Its first warpgroup loads: one thread sends for tiles, and of keys one warp fetches the
// numbers per row of q. The other warpgroups own 64 rows each.
//
// Three groups of products are under way in a warpgroup's loop: scores and gradients of the weights
// of the next tile, and sums with what the tile before left in registers. Exponentials run under
// the second and third, the derivatives under the third; and the other warpgroup is anywhere in
// between.
#pragma once
#include "cuda/attention_hopper_gradient.cuh"

namespace taut {

// dq, and what the kernel of keys needs of these rows.
template <class S>
__device__ __forceinline__ void hopper_query_gradient(const AttentionBackwardParams& b,
                                                      const HopperUnit& unit, uint8_t* shared,
                                                      PairRing<S>& ring, uint32_t own_parity) {
  using T = typename S::T;
  constexpr int D = S::D, N = S::N, kKeys = S::kColumns;
  constexpr Scores kScores = S::kScores;
  const AttentionParams& p = b.forward;
  const int lane = threadIdx.x % 32, warp = warp_index() - 4, group = warp / 4;
  const int len_q = unit.sequence.len_q, len_k = unit.sequence.len_k, shift = len_k - len_q;
  const int group_row = unit.first_row + group * 64, row = group_row + warp % 4 * 16;
  const int rows = len_q - row;
  if (group_row >= len_q) return ring.pass(unit, 1, len_k);

  const int64_t token = int64_t{unit.sequence.begin_q} + row;
  const int64_t of_rows = int64_t{unit.head} * p.total_q + token;
  const float slope = slope_of(p, unit.sequence.index, unit.head);
  const T* grad_rows = static_cast<const T*>(b.grad_out.data) + token * b.grad_out.token_stride +
                       int64_t{unit.head} * b.grad_out.head_stride;
  output_delta<T>(b, grad_rows, b.grad_out.token_stride, token, unit.head, rows);
  float lse2[2], delta[2];
  rows_lse2(lse2, b, of_rows, rows);
#pragma unroll
  for (int r = 0; r < 2; ++r)
    delta[r] = lane / 4 + 8 * r < rows ? b.delta[of_rows + lane / 4 + 8 * r] : 0.0f;

  float s[1][N][4], dp[1][N][4], dq[1][D / 8][4];
  uint32_t dscores[N / 2][4];
  set_zero(dq);
  SlopeSums sums[2];
  const uint64_t q_tile = tile_descriptor(shared + group * 2 * S::kOwnTile, 64);
  const uint64_t grad_tile = ptx::descriptor_after(q_tile, S::kOwnTile);
  const uint64_t pairs = tile_descriptor(ring.pairs, kKeys);

  const auto start = [&](int key) {
    ring.wait(len_k - key);
    const uint64_t keys = ptx::descriptor_after(pairs, ring.place.stage * 2 * S::kTile);
    ptx::wgmma_fence();
    start_rows<T, D, 64>(s, q_tile, keys);
    ptx::wgmma_commit();
    start_rows<T, D, 64>(dp, grad_tile, ptx::descriptor_after(keys, S::kTile));
    ptx::wgmma_commit();
  };
  const auto start_dq = [&](int stage) {
    ptx::wgmma_fence();
    start_sums<T, D>(dq, dscores, ptx::descriptor_after(pairs, stage * 2 * S::kTile));
    ptx::wgmma_commit();
  };
  // s -> weights -> gradients of the scores, as the products of the tile of `key` come, which were
  // followed by one more group. `exponent(s, r, column)` gives differentiate's x, `add` sums up.
  const auto differentiate_tile = [&](int key, const auto& exponent, const auto& add) {
#pragma unroll
    for (int i = 0; i < N * 4; ++i) {
      float& x = s[0][i / 4][i % 4];
      x = ptx::exp2_approx(exponent(x, i % 4 / 2, i / 4 * 8 + i % 2));
    }
    ptx::hold_registers(flat(s));
    // Two places to wait, as ptxas moves a single one in front of the exponentials.
    if (is_uniform(key + kKeys >= unit.end)) {
      ptx::wgmma_wait<1>();
      ring.release(ring.barriers.own_empty);
    } else {
      ptx::wgmma_wait<1>();
    }
    ptx::hold_registers(flat(dp));
#pragma unroll
    for (int i = 0; i < N * 4; ++i) {
      ScoreGradient d;
      d.soft = s[0][i / 4][i % 4];
      d.dscore = d.soft * (dp[0][i / 4][i % 4] - delta[i % 4 / 2]);
      if (kScores == Scores::alibi) add(d, i % 4 / 2, i / 4 * 8 + i % 2);
      s[0][i / 4][i % 4] = d.dscore;
    }
    ptx::hold_registers(flat(s));
  };
  InsideRun run;
  float away = 0.0f;  // with ALiBi: by how many keys this lane's first is behind its first row's
  const auto enter = [&](int key) {
    run =
        find_run<kScores, 16, kKeys>(slope, row + shift, p.window_left, p.window_right, len_k, key);
    if (kScores == Scores::alibi) away = key + lane % 4 * 2 - row - shift - lane / 4;
  };
  enter(unit.begin);
  const auto differentiate = [&](int key) {
    ptx::wgmma_wait<2>();
    ptx::hold_registers(flat(s));
    if (is_inside<kScores>(run, key)) {
      const float scale = p.scale * kLog2E, per_key = run.per_key;
      float offset[2];
      SlopeSums of_tile[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) offset[r] = fmaf(per_key, away - 8 * r, -lse2[r]);
      differentiate_tile(
          key,
          [&](float x, int r, int column) {
            if (kScores == Scores::plain) return fmaf(x, scale, -lse2[r]);
            return fmaf(x, scale, fmaf(per_key, column, offset[r]));
          },
          [&](const ScoreGradient& d, int r, int column) { of_tile[r].add(d, column); });
#pragma unroll
      for (int r = 0; r < 2; ++r)
        sums[r].add(of_tile[r], run.in_front ? 1.0f : -1.0f, 8 * r - away);
      if (kScores == Scores::alibi) away += kKeys;
    } else {
      const int first = row + shift - key + lane / 4 - lane % 4 * 2;
      const int exist = len_k - key - lane % 4 * 2;
      differentiate_tile(
          key,
          [&](float x, int r, int column) {
            return edge_exponent<kScores>(p, x, unit.head, slope, first + 8 * r - column,
                                          column < exist, lse2[r]);
          },
          [&](const ScoreGradient& d, int r, int column) {
            sums[r].add(d, fabsf(static_cast<float>(first + 8 * r - column)));
          });
      enter(key + kKeys);
    }
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(dq));
  };

  if (unit.begin < unit.end) {
    ptx::mbarrier_wait(ring.barriers.own_full, own_parity);
    start(unit.begin);
    ptx::wgmma_commit();  // no sums yet
    differentiate(unit.begin);
    pack_weights<T>(dscores, s);
    int previous = ring.place.stage;
    ring.place.advance();
    // Said to be uniform, or descriptors pass through registers of the threads.
    for (int key = unit.begin + kKeys; is_uniform(key < unit.end); key += kKeys) {
      start(key);
      start_dq(previous);
      differentiate(key);
      ring.release(ring.barriers.pair_empty + previous);
      pack_weights<T>(dscores, s);
      previous = ring.place.stage;
      ring.place.advance();
    }
    start_dq(previous);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(dq));
    ring.release(ring.barriers.pair_empty + previous);
  }

  if (kScores == Scores::alibi && b.slope_shares != nullptr) {
    // A row of dscores sums to zero but for the rounding of delta, which distances would magnify.
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float of_row =
          row_sum(sums[r].far) - row_sum(sums[r].residue) * row_sum(sums[r].mean_far);
      if (lane / 4 + 8 * r < rows) sum -= of_row;
    }
    sum = warpgroup_sum<S>(shared, sum);
    const int64_t tile =
        int64_t{unit.sequence.begin_q / kShortRows} + unit.sequence.index + group_row / kShortRows;
    if (threadIdx.x % 128 == 0) b.slope_shares[tile * p.heads + unit.head] = sum;
  }
  float factor[1][2] = {{p.scale, p.scale}};
  scale_rows(dq, factor);
  store_hopper_gradient<S>(b.dq, shared, dq, token, unit.head, rows, p.head_dim);
}

// dk and dv.
template <class S>
__device__ __forceinline__ void hopper_key_gradient(const AttentionBackwardParams& b,
                                                    const HopperUnit& unit, uint8_t* shared,
                                                    PairRing<S>& ring, uint32_t own_parity) {
  using T = typename S::T;
  constexpr int D = S::D, N = S::N, kQueries = S::kColumns;
  constexpr Scores kScores = S::kScores;
  const AttentionParams& p = b.forward;
  const int lane = threadIdx.x % 32, warp = warp_index() - 4, group = warp / 4;
  const int len_q = unit.sequence.len_q, len_k = unit.sequence.len_k, shift = len_k - len_q;
  const int group_key = unit.first_row + group * 64, key = group_key + warp % 4 * 16;
  const int rows = len_k - key;
  if (group_key >= len_k) return ring.pass(unit, p.group, len_q);

  float s[1][N][4], dp[1][N][4], dk[1][D / 8][4], dv[1][D / 8][4];
  uint32_t weights[N / 2][4], dscores[N / 2][4];
  set_zero(dk);
  set_zero(dv);
  const uint64_t k_tile = tile_descriptor(shared + group * 2 * S::kOwnTile, 64);
  const uint64_t v_tile = ptx::descriptor_after(k_tile, S::kOwnTile);
  const uint64_t pairs = tile_descriptor(ring.pairs, kQueries);
  const float* row_values = reinterpret_cast<const float*>(shared + S::kRowValues) + lane % 4 * 2;

  const auto start = [&](int query) {
    ring.wait(len_q - query);
    const uint64_t queries = ptx::descriptor_after(pairs, ring.place.stage * 2 * S::kTile);
    ptx::wgmma_fence();
    start_rows<T, D, 64>(s, k_tile, queries);
    ptx::wgmma_commit();
    start_rows<T, D, 64>(dp, v_tile, ptx::descriptor_after(queries, S::kTile));
    ptx::wgmma_commit();
  };
  const auto start_sums_of = [&](int stage) {
    const uint64_t queries = ptx::descriptor_after(pairs, stage * 2 * S::kTile);
    ptx::wgmma_fence();
    start_sums<T, D>(dv, weights, ptx::descriptor_after(queries, S::kTile));
    start_sums<T, D>(dk, dscores, queries);
    ptx::wgmma_commit();
  };
  // s -> weights, dp -> gradients of the scores, as the products of the tile come, which were
  // followed by one more group. `exponent(s, lse2, r, column)` gives differentiate's x.
  const auto differentiate_tile = [&](bool is_last, const auto& exponent) {
    const float* lse2 = row_values + ring.place.stage * 2 * kQueries;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float2 of_columns = *reinterpret_cast<const float2*>(lse2 + n * 8);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[0][n][i] = ptx::exp2_approx(
            exponent(s[0][n][i], i % 2 == 0 ? of_columns.x : of_columns.y, i / 2, n * 8 + i % 2));
    }
    ptx::hold_registers(flat(s));
    if (is_last) {  // two places to wait, as above
      ptx::wgmma_wait<1>();
      ring.release(ring.barriers.own_empty);
    } else {
      ptx::wgmma_wait<1>();
    }
    ptx::hold_registers(flat(dp));
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(lse2 + kQueries + n * 8);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        dp[0][n][i] = s[0][n][i] * (dp[0][n][i] - (i % 2 == 0 ? delta.x : delta.y));
    }
    ptx::hold_registers(flat(dp));
  };
  InsideRun run;
  float away = 0.0f;  // with ALiBi: by how many rows this lane's first is behind its first key's
  const auto enter = [&](int query, float slope) {
    constexpr int kNoEnd = 1 << 30;  // the numbers of rows past the end hide their scores
    run = find_run<kScores, 16, kQueries>(slope, key - shift, p.window_right, p.window_left, kNoEnd,
                                          query);
    if (kScores == Scores::alibi) away = query + shift + lane % 4 * 2 - key - lane / 4;
  };
  const auto differentiate = [&](int query, float slope, bool is_last) {
    ptx::wgmma_wait<2>();
    ptx::hold_registers(flat(s));
    if (is_inside<kScores>(run, query)) {
      const float scale = p.scale * kLog2E, per_row = run.per_key;
      float offset[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) offset[r] = per_row * (away - 8 * r);
      differentiate_tile(is_last, [&](float x, float lse2, int r, int column) {
        if (kScores == Scores::plain) return fmaf(x, scale, -lse2);
        return fmaf(x, scale, fmaf(per_row, column, -lse2) + offset[r]);
      });
      if (kScores == Scores::alibi) away += kQueries;
    } else {
      const int first = query + shift - key + lane % 4 * 2 - lane / 4;
      differentiate_tile(is_last, [&](float x, float lse2, int r, int column) {
        return edge_exponent<kScores>(p, x, unit.head, slope, first - 8 * r + column, true, lse2);
      });
      enter(query + kQueries, slope);
    }
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(dk));
    ptx::hold_registers(flat(dv));
  };
  const auto pack = [&] {
    pack_weights<T>(weights, s);
    pack_weights<T>(dscores, dp);
  };

  if (unit.begin < unit.end) {
    int query = unit.begin, head = unit.head * p.group;
    const int last_head = head + p.group - 1;
    float slope = slope_of(p, unit.sequence.index, head);
    // On to the next tile; false behind the last one.
    const auto advance = [&] {
      ring.place.advance();
      query += kQueries;
      if (query < unit.end) return true;
      if (head == last_head) return false;
      query = unit.begin;
      slope = slope_of(p, unit.sequence.index, ++head);
      enter(query, slope);
      return true;
    };
    const auto is_last = [&] { return head == last_head && query + kQueries >= unit.end; };
    enter(query, slope);
    ptx::mbarrier_wait(ring.barriers.own_full, own_parity);
    start(query);
    ptx::wgmma_commit();  // no sums yet
    differentiate(query, slope, is_last());
    pack();
    int previous = ring.place.stage;
    while (advance()) {
      start(query);
      start_sums_of(previous);
      differentiate(query, slope, is_last());
      ring.release(ring.barriers.pair_empty + previous);
      pack();
      previous = ring.place.stage;
    }
    start_sums_of(previous);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(dk));
    ptx::hold_registers(flat(dv));
    ring.release(ring.barriers.pair_empty + previous);
  }

  const int64_t token = int64_t{unit.sequence.begin_k} + key;
  float factor[1][2] = {{p.scale, p.scale}};
  scale_rows(dk, factor);
  store_hopper_gradient<S>(b.dk, shared, dk, token, unit.head, rows, p.head_dim);
  store_hopper_gradient<S>(b.dv, shared, dv, token, unit.head, rows, p.head_dim);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    attention_hopper_backward_kernel(const __grid_constant__ HopperBackwardParams h) {
  uint8_t* shared = dynamic_shared();
  if (threadIdx.x == 0) HopperBackwardBarriers<S>(shared).initialize();
  __syncthreads();
  const int warp = warp_index();
  if (warp < 4) {
    ptx::set_max_registers_down<S::kLoaderRegisters>();
    if (threadIdx.x == 0) load_pairs<S>(h, shared);
    if (S::kOfKeys && warp == 1) load_row_values<S>(h.backward, shared);
  } else {
    ptx::set_max_registers_up<S::kRegisters>();
    PairRing<S> ring(shared);
    uint32_t own_parity = 0;
    for_each_gradient_unit<S>(h.backward, [&](const HopperUnit& unit) {
      if constexpr (S::kOfKeys)
        hopper_key_gradient<S>(h.backward, unit, shared, ring, own_parity);
      else
        hopper_query_gradient<S>(h.backward, unit, shared, ring, own_parity);
      own_parity ^= unit.begin < unit.end;
    });
  }
}

}  // namespace taut
