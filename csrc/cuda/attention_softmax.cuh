// The online softmax of a tile of scores in two steps, so that what is summed up already can shrink
// between them or, where products are under way, behind them.
#pragma once
#include "cuda/attention_inside.cuh"

namespace taut {

// 2^x for x <= 127 by multiply-adds, relative error below 2^-18, exactly 1 at 0; 0 from -127 down.
// The logsumexp is why it has this degree: 3 would be enough for 16-bit weights.
__device__ __forceinline__ float exp2_by_fma(float x) {
  constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to a whole number
  x = ptx::max_nan(x, -127.0f);
  const float whole = x + kWhole, rest = x - (whole - kWhole);
  float slope = fmaf(0.00958285317f, rest, 0.055906425f);
  slope = fmaf(slope, rest, 0.240240986f);
  slope = fmaf(slope, rest, 0.693124193f);
  const float power = __uint_as_float((__float_as_uint(whole) << 23) + 0x3f800000u);
  return fmaf(slope * rest, power, power);
}

// Weights are 2^(x - base), x in units of log2. A row's base follows its largest x by jumps, when x
// exceeds it by more than kSlack: weights of 2^8 do no harm, and sums and outputs are seldom
// scaled.
template <int M>
struct RowState {
  float base[M][2], sum[M][2];
};
constexpr float kSlack = 8.0f, kNoBase = -3.402823466e38f;

// Lets the bases follow x = scale * s + slope * away (a number per row); scale * s + offset is then
// x - base. Whether those of any row of the warp moved: what is summed up by then shrinks by
// `shrink`.
template <class S>
__device__ __forceinline__ bool move_bases(const float (&s)[S::M][S::N][4], RowState<S::M>& state,
                                           float (&offset)[S::M][2], float (&shrink)[S::M][2],
                                           float scale, float slope, const float (&away)[S::M][2]) {
  float largest[S::M][2];  // of this lane's columns
  bool exceeds = false;
#pragma unroll
  for (int m = 0; m < S::M; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      largest[m][r] = s[m][0][2 * r];
#pragma unroll
      for (int n = 0; n < S::N; ++n)
        largest[m][r] = fmaxf(largest[m][r], fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
      offset[m][r] = fmaf(slope, away[m][r], -state.base[m][r]);
      exceeds = exceeds || fmaf(largest[m][r], scale, offset[m][r]) > kSlack;
    }
  }
  if (!is_uniform(exceeds)) return false;
#pragma unroll
  for (int i = 0; i < 2 * S::M; ++i) {
    float &base = state.base[i / 2][i % 2], &own = offset[i / 2][i % 2];
    const float most = row_max(largest[i / 2][i % 2]);
    const bool moves = fmaf(most, scale, own) > kSlack;  // whatever other rows do
    const float next = moves ? fmaf(most, scale, slope * away[i / 2][i % 2]) : base;
    shrink[i / 2][i % 2] = ptx::exp2_approx(base - next);
    base = next;
    state.sum[i / 2][i % 2] *= shrink[i / 2][i % 2];
    own = fmaf(slope, away[i / 2][i % 2], -next);
  }
  return true;
}

// s -> weights.
template <class S>
__device__ __forceinline__ void weigh_scores(float (&s)[S::M][S::N][4], RowState<S::M>& state,
                                             float scale, const float (&offset)[S::M][2]) {
#pragma unroll
  for (int m = 0; m < S::M; ++m) {
#pragma unroll
    for (int n = 0; n < S::N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = S::exp2(fmaf(s[m][n][i], scale, offset[m][i / 2]), n);
        state.sum[m][i / 2] += s[m][n][i];
      }
    }
  }
}

}  // namespace taut
