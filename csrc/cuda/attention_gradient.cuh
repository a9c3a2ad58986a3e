// What the backward kernels of attention are made of: pairs of tiles that pass through shared
// memory, one score differentiated, the gradients of the biases.
#pragma once
#include "cuda/attention.cuh"

namespace taut {

template <class T_, int D_, Scores kScores_>
struct BackwardShape {
  using T = T_;
  static constexpr int D = D_, kThreads = 128, kRows = kShortRows;
  static constexpr Scores kScores = kScores_;
  // Columns of a tile of scores in the two procedures: what registers and shared memory allow.
  static constexpr int kKeys = D <= 64 ? 64 : D <= 128 ? 32 : 16;
  static constexpr int kQueries = D <= 64 ? 32 : 16;
  static constexpr int kStages = D <= 128 ? 2 : 1;  // pairs of tiles that pass: one ahead, or none
  static constexpr bool kSplits = D > 128;          // dk and dv in turns
  static constexpr int kTileBytes = 2 * (kRows + kStages * kKeys) * kPitch<D> * 2;
  static constexpr int kScratchFloats = kScores == Scores::all ? kRows * (kKeys + 1) : kThreads;
  static constexpr int kSharedBytes = kTileBytes + kScratchFloats * 4;
  static_assert(2 * kStages * kQueries <= kScratchFloats, "two numbers per row that passes");
  static_assert(kQueries <= kKeys, "shared memory is laid out for kKeys columns");
  static_assert(kSharedBytes <= 99 << 10, "what a block has on sm_86 and sm_89");
};

// Pairs of tiles of ROWS rows each, K and V or Q and the gradient of out, on their way to shared
// memory.
template <class S, int ROWS>
struct TilePairs {
  using T = typename S::T;
  using Copies = RowCopies<T, S::D, ROWS, S::kThreads>;
  static constexpr int kTile = ROWS * kPitch<S::D>;

  T* tiles;
  Copies first, second;
  int head_dim;

  __device__ __forceinline__ void start(T* pair, int token) const {
    first.start(pair, token, head_dim);
    second.start(pair + kTile, token, head_dim);
    ptx::cp_async_commit();
  }
  // One pair, whole: of the threads' own copies, so a barrier is still to come.
  __device__ __forceinline__ void load(int token) const {
    start(tiles, token);
    ptx::cp_async_wait<0>();
    add_bias(tiles);
  }
  __device__ __forceinline__ void add_bias(T* pair) const {
    first.add_bias(pair, head_dim);
    second.add_bias(pair + kTile, head_dim);
  }

  // Calls body(first tile, second tile, stage, token) for the tiles from `begin` to `end`; where
  // there are two stages the next pair travels meanwhile. `also(stage, token)` starts further
  // copies.
  template <class Also, class Body>
  __device__ __forceinline__ void pass(int begin, int end, const Also& also,
                                       const Body& body) const {
    if (begin >= end) return;
    constexpr bool kAhead = S::kStages > 1;
    also(0, begin);
    start(tiles, begin);
    int stage = 0;
    for (int token = begin; token < end; token += ROWS) {
      T* pair = tiles + stage * 2 * kTile;
      const int next = token + ROWS;
      if (kAhead && next < end) {
        also(stage ^ 1, next);
        start(tiles + (stage ^ 1) * 2 * kTile, next);
        ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
      add_bias(pair);
      __syncthreads();  // the pair is complete
      body(pair, pair + kTile, stage, token);
      __syncthreads();  // nobody reads it any more
      if (!kAhead && next < end) {
        also(0, next);
        start(tiles, next);
      }
      if (kAhead) stage ^= 1;
    }
  }
};

// One score, differentiated.
struct ScoreGradient {
  float soft;      // its softmax
  float weight;    // what v was multiplied by
  float dsoft;     // the gradient of the softmax
  float dscore;    // of the score with its biases
  float dproduct;  // of scale * q . k
};

// x: the score with its biases less logsumexp, in units of log2, -inf where hidden; `capped` the
// score without biases; dp = grad_out . v.
template <Scores kScores>
__device__ __forceinline__ ScoreGradient differentiate(const AttentionParams& p, float x,
                                                       float capped, float dp, float delta,
                                                       float keep) {
  ScoreGradient d;
  d.soft = ptx::exp2_approx(x);
  d.weight = d.soft;
  d.dsoft = dp;
  if (kScores == Scores::all) {
    d.dsoft *= keep;
    if (p.clip) {
      const float stretched = x == -kInfinity ? 0.0f : fmaf(p.clip_slope, d.soft, p.clip_offset);
      d.weight = fminf(fmaxf(stretched, 0.0f), 1.0f);
      d.dsoft = x != -kInfinity && stretched == d.weight ? d.dsoft * p.clip_slope : 0.0f;
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

// x of differentiate by element; turns the product s = q . k into `capped`.
template <Scores kScores>
__device__ __forceinline__ float edge_exponent(const AttentionParams& p, float& s, int head,
                                               float slope, int distance, bool exists, float lse2) {
  s *= p.scale;
  if (kScores == Scores::all && p.softcap > 0) s = soft_capped(s, p.softcap);
  float x = fmaf(s, kLog2E, -lse2);
  if (kScores == Scores::alibi) x -= slope * kLog2E * fabsf(static_cast<float>(distance));
  if (kScores == Scores::all) x += score_bias(p, slope, head, distance);
  return exists && is_visible(p, distance) ? x : -kInfinity;
}

// Of the slope's gradient: a row's sums of dscore and softmax, alone and times |distance|.
struct SlopeSums {
  float residue = 0.0f, mass = 0.0f, far = 0.0f, mean_far = 0.0f;

  __device__ __forceinline__ void add(const ScoreGradient& d, float away) {
    residue += d.dscore;
    mass += d.soft;
    far = fmaf(d.dscore, away, far);
    mean_far = fmaf(d.soft, away, mean_far);
  }
  // Sums of a tile where |distance| is sign * (first - away).
  __device__ __forceinline__ void add(const SlopeSums& tile, float sign, float first) {
    residue += tile.residue;
    far += sign * fmaf(first, tile.residue, -tile.far);
    mean_far += sign * fmaf(first, tile.mass, -tile.mean_far);
  }
};

// delta of the warp's 16 rows from out . grad_out, eight lanes per row; `grad` is the first row.
template <class T>
__device__ __forceinline__ void output_delta(const AttentionBackwardParams& b, const T* grad,
                                             int64_t grad_stride, int64_t token, int head,
                                             int rows) {
  const int lane = threadIdx.x % 32, head_dim = b.forward.head_dim;
  const T* out = static_cast<const T*>(b.out.data) + token * b.out.token_stride +
                 int64_t{head} * b.out.head_stride;
  for (int i = 0; i < 4; ++i) {
    const int row = i * 4 + lane / 8;
    float sum = 0.0f;
    for (int first = 0; first < head_dim; first += 64) {  // as often in all lanes
      const int column = first + lane % 8 * 8;
      if (column >= head_dim || row >= rows) continue;
      const uint4 x =
          *reinterpret_cast<const uint4*>(out + int64_t{row} * b.out.token_stride + column);
      const uint4 y = *reinterpret_cast<const uint4*>(grad + row * grad_stride + column);
      const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum = fmaf(ptx::low_of<T>(xs[j]), ptx::low_of<T>(ys[j]), sum);
        sum = fmaf(ptx::high_of<T>(xs[j]), ptx::high_of<T>(ys[j]), sum);
      }
    }
#pragma unroll
    for (int bit = 1; bit < 8; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    if (lane % 8 == 0 && row < rows) b.delta[int64_t{head} * b.forward.total_q + token + row] = sum;
  }
  __syncwarp();
}

// logsumexp in units of log2 of this lane's two of the warp's rows, also for the kernel of keys:
// +inf, which gives weights of 0, for rows that see no key or are none.
__device__ __forceinline__ void rows_lse2(float (&lse2)[2], const AttentionBackwardParams& b,
                                          int64_t of_rows, int rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int own_row = lane / 4 + 8 * r;
    const float lse = own_row < rows ? b.forward.logsumexp[of_rows + own_row] : -kInfinity;
    lse2[r] = lse == -kInfinity ? kInfinity : lse * kLog2E;
    if (lane % 4 == 0 && own_row < rows) b.lse2[of_rows + own_row] = lse2[r];
  }
}

// The warp's rows of a gradient, through its rows of a tile in shared memory.
template <class S>
__device__ __forceinline__ void store_gradient(const AttentionGradient& to, typename S::T* tile,
                                               const float (&values)[1][S::D / 8][4], int64_t token,
                                               int head, int rows, int head_dim) {
  using T = typename S::T;
  T* out = static_cast<T*>(to.data) + token * to.token_stride + int64_t{head} * to.head_stride;
  store_rows<T, S::D, 1>(tile, values, out, to.token_stride, rows, head_dim);
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

}  // namespace taut
