// What the attention kernels share: operands in shared memory, products of tiles, masks, dropout.
// Everywhere g = lane / 4 and t = lane % 4; a 16 x 8 accumulator of mma.h holds rows g and g + 8,
// columns 2 t and 2 t + 1.
#pragma once
#include "cuda/attention_params.h"
#include "cuda/device.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace taut {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_huge_valf();

// Rows of 16-bit elements lie kPitch<D> apart in shared memory: one 16-byte chunk more than D, an
// odd number of chunks, so that the eight rows of an 8x8 matrix lie in different banks.
template <int D>
constexpr int kPitch = D + 8;

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ int clamp(int x, int low, int high) { return least(most(x, low), high); }

// The warp's index in its block, from one lane: the compiler then knows that a warp's branches by
// it do not diverge.
__device__ __forceinline__ int warp_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
}

// A condition that is the same in all lanes, for the compiler to know so too.
__device__ __forceinline__ bool is_uniform(bool condition) {
  return __any_sync(0xffffffffu, condition);
}

// ---- sequences and items

struct Sequence {
  int index, begin_q, len_q, begin_k, len_k;
};

// Inside the tensors, whatever cu_seqlens says.
__device__ __forceinline__ Sequence find_sequence(const AttentionParams& p, int index) {
  const int begin_q = clamp(p.cu_seqlens_q[index], 0, p.total_q);
  const int begin_k = clamp(p.cu_seqlens_k[index], 0, p.total_k);
  return {index, begin_q, clamp(p.cu_seqlens_q[index + 1], begin_q, p.total_q) - begin_q, begin_k,
          clamp(p.cu_seqlens_k[index + 1], begin_k, p.total_k) - begin_k};
}

struct Item {
  int sequence, first_row;  // sequence < 0: nothing to do
};

__device__ __forceinline__ Item plan_item(const int32_t* plan, int index, int batch) {
  const int sequence = plan[2 * (int64_t{kPlanHeader} + index)];
  const int first_row = plan[2 * (int64_t{kPlanHeader} + index) + 1];
  return {sequence < batch && first_row >= 0 ? sequence : -1, first_row};
}

// ---- operands

// Row i of a tile is `head`'s row of token `token + i`, or, where tiles hold several heads of 1 <<
// log2_rows rows each, that of head `head + (i >> log2_rows)` and token i modulo the rows.
template <class T>
struct TileRows {
  const T* data;  // of the sequence's first token, head 0
  const T* bias;  // of head 0, or null
  int token_stride, head_stride;
  int token, length;              // rows [length, ...) of the sequence are zeros
  int head, heads, heads_per_kv;  // heads past `heads` are zeros
  int log2_rows;
};

template <class T>
__device__ __forceinline__ TileRows<T> tile_rows(const AttentionRows& from, int begin, int length,
                                                 int head, int heads, int heads_per_kv,
                                                 int log2_rows) {
  return {static_cast<const T*>(from.data) + int64_t{begin} * from.token_stride,
          static_cast<const T*>(from.bias),
          from.token_stride,
          from.head_stride,
          0,
          length,
          head,
          heads,
          heads_per_kv,
          log2_rows};
}

// Starts copying ROWS rows. `kInside` promises that all of them exist and are one head's.
template <class T, int D, int ROWS, int THREADS, bool kInside>
__device__ __forceinline__ void load_rows(T* shared, const TileRows<T>& from, int head_dim) {
  constexpr int kChunks = D / 8;
  static_assert(ROWS * kChunks % THREADS == 0, "every thread copies the same number of chunks");
  if constexpr (kInside) {
    const T* data = from.data + int64_t{from.head / from.heads_per_kv} * from.head_stride +
                    int64_t{from.token} * from.token_stride;
#pragma unroll
    for (int i = 0; i < ROWS * kChunks / THREADS; ++i) {
      const int chunk = i * THREADS + threadIdx.x;
      const int row = chunk / kChunks, column = chunk % kChunks * 8;
      const T* source = data + int64_t{row} * from.token_stride + column;
      const bool exists = column < head_dim;
      ptx::cp_async<16>(shared + row * kPitch<D> + column, exists ? source : data, exists ? 16 : 0);
    }
  } else {
#pragma unroll 1  // rare: registers matter more
    for (int i = 0; i < ROWS * kChunks / THREADS; ++i) {
      const int chunk = i * THREADS + threadIdx.x;
      const int row = chunk / kChunks, column = chunk % kChunks * 8;
      const int head = from.head + (row >> from.log2_rows);
      const int token = from.token + (row & ((1 << from.log2_rows) - 1));
      const bool exists = column < head_dim && token < from.length && head < from.heads;
      const T* source = from.data + int64_t{token} * from.token_stride +
                        int64_t{head / from.heads_per_kv} * from.head_stride + column;
      ptx::cp_async<16>(shared + row * kPitch<D> + column, exists ? source : from.data,
                        exists ? 16 : 0);
    }
  }
}

// Adds the bias to the chunks that this thread copied with load_rows; they have arrived.
template <class T, int D, int ROWS, int THREADS>
__device__ __forceinline__ void add_bias(T* shared, const TileRows<T>& from, int head_dim) {
  if (from.bias == nullptr) return;
  constexpr int kChunks = D / 8;
#pragma unroll 1
  for (int i = 0; i < ROWS * kChunks / THREADS; ++i) {
    const int chunk = i * THREADS + threadIdx.x;
    const int row = chunk / kChunks, column = chunk % kChunks * 8;
    const int head = from.head + (row >> from.log2_rows);
    if (column >= head_dim || head >= from.heads) continue;
    const T* bias = from.bias + int64_t{head / from.heads_per_kv} * head_dim + column;
    uint32_t* target = reinterpret_cast<uint32_t*>(shared + row * kPitch<D> + column);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t x = target[j];
      target[j] = ptx::pack<T>(ptx::low_of<T>(x) + ptx::to_float(bias[2 * j]),
                               ptx::high_of<T>(x) + ptx::to_float(bias[2 * j + 1]));
    }
  }
}

// ---- products

// A operands, 16 M rows and D channels: in shared memory, or loaded once into registers.
template <class T, int D, int M>
struct SharedRows {
  const T* tile;

  __device__ __forceinline__ void fragment(uint32_t (&a)[4], int m, int k) const {
    const int lane = threadIdx.x % 32;
    ptx::ldmatrix_x4(a, tile + (m * 16 + lane % 16) * kPitch<D> + k * 16 + lane / 16 * 8);
  }
};

template <class T, int D, int M>
struct HeldRows {
  uint32_t held[M][D / 16][4];

  __device__ __forceinline__ void load(const T* tile) {
    const SharedRows<T, D, M> rows{tile};
#pragma unroll
    for (int i = 0; i < M * (D / 16); ++i)
      rows.fragment(held[i / (D / 16)][i % (D / 16)], i / (D / 16), i % (D / 16));
  }
  __device__ __forceinline__ void fragment(uint32_t (&a)[4], int m, int k) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = held[m][k][i];
  }
};

// acc[m][n] += rows of A . rows 8 n ... of `tile`: products along the channels. Pairs of n from
// `pairs` on are left out.
template <class T, int D, int M, int N, class Rows>
__device__ __forceinline__ void multiply_rows(float (&acc)[M][N][4], const Rows& rows,
                                              const T* tile, int pairs = N / 2) {
  const int lane = threadIdx.x % 32;
  const T* b_row = tile + (lane / 16 * 8 + lane % 8) * kPitch<D> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) rows.fragment(a[m], m, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      if (n / 2 >= pairs) break;
      uint32_t b[4];
      ptx::ldmatrix_x4(b, b_row + n * 8 * kPitch<D> + k * 16);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        ptx::mma_m16n8k16<T>(acc[m][n], a[m], {b[0], b[1]});
        ptx::mma_m16n8k16<T>(acc[m][n + 1], a[m], {b[2], b[3]});
      }
    }
  }
}

// acc[m][d] += weights (16 M x 8 N, in accumulator layout) . rows of `tile`, 8 N of them: products
// along the rows. Pairs of n from `pairs` on are left out.
template <class T, int D, int M, int N>
__device__ __forceinline__ void multiply_weights(float (&acc)[M][D / 8][4],
                                                 const float (&weights)[M][N][4], const T* tile,
                                                 int pairs = N / 2) {
  const int lane = threadIdx.x % 32;
  const T* row = tile + lane % 16 * kPitch<D> + lane / 16 * 8;
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    if (n / 2 >= pairs) break;
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      a[m][0] = ptx::pack<T>(weights[m][n][0], weights[m][n][1]);
      a[m][1] = ptx::pack<T>(weights[m][n][2], weights[m][n][3]);
      a[m][2] = ptx::pack<T>(weights[m][n + 1][0], weights[m][n + 1][1]);
      a[m][3] = ptx::pack<T>(weights[m][n + 1][2], weights[m][n + 1][3]);
    }
#pragma unroll
    for (int d = 0; d < D / 8; d += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, row + n * 8 * kPitch<D> + d * 8);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        ptx::mma_m16n8k16<T>(acc[m][d], a[m], {b[0], b[1]});
        ptx::mma_m16n8k16<T>(acc[m][d + 1], a[m], {b[2], b[3]});
      }
    }
  }
}

template <int M, int N>
__device__ __forceinline__ void set_zero(float (&acc)[M][N][4]) {
#pragma unroll
  for (int i = 0; i < M * N * 4; ++i) acc[i / 4 / N][i / 4 % N][i % 4] = 0.0f;
}

// Over the four lanes that hold a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// ---- scores

__device__ __forceinline__ bool is_visible(const AttentionParams& p, int distance) {
  return distance <= p.window_left && distance >= -p.window_right;
}

// softcap * tanh(x / softcap), by an exponential: ex2 is more exact than tanh.approx.
__device__ __forceinline__ float soft_capped(float x, float softcap) {
  const float e = ptx::exp2_approx(2 * kLog2E / softcap * fabsf(x));
  return copysignf(softcap - 2 * softcap * ptx::reciprocal_approx(e + 1), x);
}

// The biases of a score in units of log2.
__device__ __forceinline__ float score_bias(const AttentionParams& p, float slope, int head,
                                            int distance) {
  float bias = -slope * kLog2E * static_cast<float>(distance < 0 ? -distance : distance);
  if (p.relative_bias != nullptr) {
    const int limit = p.relative_limit;
    const int64_t row = int64_t{head} * (2 * int64_t{limit} + 1);
    bias += kLog2E * p.relative_bias[row + clamp(-distance, -limit, limit) + limit];
  }
  return bias;
}

__device__ __forceinline__ float slope_of(const AttentionParams& p, int sequence, int head) {
  if (p.alibi_slopes == nullptr) return 0.0f;
  return p.alibi_slopes[int64_t{sequence} * p.slopes_stride + head];
}

// ---- dropout

// Philox4x32-10 with counter (block, row, head, 0).
__device__ __forceinline__ uint4 philox(uint32_t block, uint32_t row, uint32_t head,
                                        const uint32_t (&seed)[2]) {
  uint32_t c0 = block, c1 = row, c2 = head, c3 = 0, k0 = seed[0], k1 = seed[1];
#pragma unroll
  for (int i = 0; i < 10; ++i) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return make_uint4(c0, c1, c2, c3);
}

// 0 or 1 / (1 - dropout_p) for the accumulator of rows g and g + 8 (of q: `row` is the packed row
// of row 0) and keys `key` + 2 t, + 1, key a multiple of 8. Lanes 2 t' and 2 t' + 1 share the words
// of four keys: the first computes those of row g, the second those of row g + 8.
__device__ __forceinline__ void keep_factors(float (&keep)[4], const AttentionParams& p, int head,
                                             int row, int key) {
  const int lane = threadIdx.x % 32, odd = lane % 2;
  const uint4 words = philox(key / 4 + lane % 4 / 2, row + lane / 4 + 8 * odd, head, p.seed);
  const uint32_t first = odd ? words.z : words.x, second = odd ? words.w : words.y;
  const uint32_t other_first = __shfl_xor_sync(0xffffffffu, odd ? words.x : words.z, 1);
  const uint32_t other_second = __shfl_xor_sync(0xffffffffu, odd ? words.y : words.w, 1);
  const uint32_t of[4] = {odd ? other_first : first, odd ? other_second : second,
                          odd ? first : other_first, odd ? second : other_second};
#pragma unroll
  for (int i = 0; i < 4; ++i) keep[i] = of[i] >= p.dropout_threshold ? p.keep_scale : 0.0f;
}

// The same where rows are keys (from `key` on, a multiple of 4) and columns rows of q. The four
// lanes whose g differ in their lowest two bits share keys of a word: each computes one of (key g
// or g + 8, column 2 t or 2 t + 1) and they exchange the words.
__device__ __forceinline__ void keep_factors_transposed(float (&keep)[4], const AttentionParams& p,
                                                        int head, int row, int key) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, own = g % 4;
  const uint4 words = philox((key + g + own / 2 * 8) / 4, row + 2 * t + own % 2, head, p.seed);
  // x[c] of lane `own` is word c of computation `own`; after the exchange word `own` of c.
  uint32_t x[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (c & bit) continue;
      const bool high = own & bit;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? x[c] : x[c | bit], 4 * bit);
      x[c] = high ? got : x[c];
      x[c | bit] = high ? x[c | bit] : got;
    }
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) keep[c] = x[c] >= p.dropout_threshold ? p.keep_scale : 0.0f;
}

}  // namespace taut
