// The softmax of a tile of scores in two steps, so that what is summed up already can shrink
// between them or, where products are under way, behind them. For warps of 16 rows.
#pragma once
#include "cuda/attention_tile.cuh"

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

// Of the two rows of a lane. Weights are 2^(x - base), x in units of log2: a row's base follows its
// largest x by jumps, when x exceeds it by more than kSlack.
struct RowSums {
  float base[2], sum[2];
};
constexpr float kSlack = 8.0f, kNoBase = -3.402823466e38f;

// Lets the bases follow x = scale * s + shift (a number per row); scale * s + offset is then x -
// base. Whether those of any row of the warp moved: what is summed up by then shrinks by `shrink`.
template <class S>
__device__ __forceinline__ bool move_bases(const float (&s)[1][S::N][4], RowSums& rows,
                                           float (&offset)[2], float (&shrink)[1][2], float scale,
                                           const float (&shift)[2]) {
  float largest[2];  // of this lane's columns
  bool exceeds = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = s[0][0][2 * r];
#pragma unroll
    for (int n = 0; n < S::N; ++n)
      largest[r] = fmaxf(largest[r], fmaxf(s[0][n][2 * r], s[0][n][2 * r + 1]));
    offset[r] = shift[r] - rows.base[r];
    exceeds = exceeds || fmaf(largest[r], scale, offset[r]) > kSlack;
  }
  if (!is_uniform(exceeds)) return false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float most = row_max(largest[r]);
    const bool moves = fmaf(most, scale, offset[r]) > kSlack;  // whatever other rows do
    const float next = moves ? fmaf(most, scale, shift[r]) : rows.base[r];
    shrink[0][r] = ptx::exp2_approx(rows.base[r] - next);
    rows.base[r] = next;
    rows.sum[r] *= shrink[0][r];
    offset[r] = shift[r] - next;
  }
  return true;
}

// s -> weights.
template <class S>
__device__ __forceinline__ void weigh_scores(float (&s)[1][S::N][4], RowSums& rows, float scale,
                                             const float (&offset)[2]) {
#pragma unroll
  for (int i = 0; i < S::N * 4; ++i) {
    float& x = s[0][i / 4][i % 4];
    x = S::exp2(fmaf(x, scale, offset[i % 4 / 2]), i / 4);
    rows.sum[i % 4 / 2] += x;
  }
}

}  // namespace taut
