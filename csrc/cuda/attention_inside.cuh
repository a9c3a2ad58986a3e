// Tiles of scores that no end, no limit and no change of sign of the distance crosses, where ALiBi
// is linear: runs of them in a pass over the keys, or with rows and keys exchanged over the rows.
#pragma once
#include "cuda/attention_tile.cuh"

namespace taut {

// Tiles inside come in runs: from where one was looked for to the one that begins at `last`. With
// ALiBi a run lies on one side of the diagonal, and x rises in it by `per_key` (in units of log2)
// per key. So what a tile is takes one comparison, and what a run's tiles share changes only in
// tiles that are not inside: between the two sides there always is one.
struct InsideRun {
  int last = -1;
  bool in_front = false;  // of the diagonal
  float per_key = 0.0f;
};

// The run that begins with the tile at `key`; `last` is less where that one is not inside. Tiles
// are of KEYS keys and of ROWS rows, the first of which is at distance 0 from the key `diagonal`.
// They see `left` keys behind them and `right` in front, of `length` in all. Where rows pass by
// keys, all this is the other way round.
template <Scores kScores, int ROWS, int KEYS>
__device__ __forceinline__ InsideRun find_run(float slope, int diagonal, int left, int right,
                                              int length, int key) {
  InsideRun run;
  if (kScores == Scores::all) return run;
  int first = diagonal + (ROWS - 1) - left;
  int last = least(diagonal + right, length - 1) - (KEYS - 1);
  if constexpr (kScores == Scores::alibi) {
    run.in_front = key <= diagonal - (KEYS - 1);
    run.per_key = (run.in_front ? slope : -slope) * kLog2E;
    if (run.in_front)
      last = least(last, diagonal - (KEYS - 1));
    else
      first = most(first, diagonal + (ROWS - 1));
  }
  if (key >= first) run.last = last;
  return run;
}

template <Scores kScores>
__device__ __forceinline__ bool is_inside(const InsideRun& run, int key) {
  return kScores != Scores::all && is_uniform(key <= run.last);
}

// ALiBi inside tiles, where it is linear: what accumulators start from, `per_column` (in units of
// log2) per column less row of the accumulator. The rest of it is a number per 16 rows.
template <int N>
struct LinearBias {
  float start[N][4] = {};

  __device__ __forceinline__ void set(float per_column, float scale) {
    const int lane = threadIdx.x % 32;
    const float slope = per_column / scale, own = slope * (lane % 4 * 2 - lane / 4);
#pragma unroll
    for (int i = 0; i < N * 4; ++i)
      start[i / 4][i % 4] = ptx::opaque(fmaf(slope, i / 4 * 8 + i % 2 - i % 4 / 2 * 8, own));
  }
};

}  // namespace taut
