// What the attention kernels share: operands in shared memory, products of tiles, masks, dropout.
// Everywhere g = lane / 4 and t = lane % 4; a 16 x 8 accumulator of mma.h holds rows g and g + 8,
// columns 2 t and 2 t + 1.
#pragma once
#include "cuda/attention_params.h"
#include "cuda/device.h"
#include "cuda/ptx/bits.h"
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

constexpr int kOneHead = 30;  // log2 of the rows of a head in tiles that hold one

// Copies tiles of ROWS rows of one head of a sequence to shared memory. Row i of a tile is token
// `token + i`, or, where tiles hold several heads of 1 << log2_rows rows each, token i modulo these
// rows of head `head + (i >> log2_rows)`. A thread copies chunks of eight channels: kLanes threads
// a row, kStep rows at a time.
template <class T, int D, int ROWS, int THREADS>
class RowCopies {
  static constexpr int kChunks = D / 8, kLanes = kChunks & -kChunks, kStep = THREADS / kLanes;
  static_assert(ROWS % kStep == 0, "every thread copies the same number of rows");

 public:
  // Rows [length, ...) of the sequence and heads past `heads` are zeros.
  __device__ __forceinline__ RowCopies(const AttentionRows& from, int begin, int length, int head,
                                       int heads, int heads_per_kv, int log2_rows)
      : from_(from),
        row_(threadIdx.x / kLanes),
        column_(threadIdx.x % kLanes * 8),
        length_(length),
        head_(head),
        heads_(heads),
        heads_per_kv_(heads_per_kv),
        log2_rows_(log2_rows) {
    sequence_ = static_cast<const T*>(from.data) + int64_t{begin} * from.token_stride + column_;
    source_ = ptx::opaque(of_head(head));
  }

  // Starts copying the tile of rows from `token` on.
  __device__ __forceinline__ void start(T* tile, int token, int head_dim) const {
    T* target = tile + row_ * kPitch<D> + column_;
    // Else widened to 64 bits in front of loops, which keeps it from products of 32 by 32 bits.
    const int stride = ptx::opaque(from_.token_stride);
    if (1 << log2_rows_ >= ROWS) {
      const int own = ptx::opaque(2 * (token + row_));
#pragma unroll
      for (int i = 0; i < ROWS / kStep; ++i)
        copy_row(target + i * kStep * kPitch<D>, source_, own + 2 * i * kStep, stride, length_,
                 head_dim);
    } else {
#pragma unroll 1
      for (int i = 0; i < ROWS / kStep; ++i) {
        const int row = row_ + i * kStep, head = head_ + (row >> log2_rows_);
        copy_row(target + i * kStep * kPitch<D>, of_head(head),
                 2 * (token + (row & ((1 << log2_rows_) - 1))), stride, head < heads_ ? length_ : 0,
                 head_dim);
      }
    }
  }

  // use(row, column) for the chunks that this thread copies; the loop is unrolled `unrolled` times.
  template <int unrolled, class Use>
  __device__ __forceinline__ void for_chunks(const Use& use) const {
#pragma unroll unrolled
    for (int i = 0; i < ROWS / kStep * (kChunks / kLanes); ++i)
      use(row_ + i % (ROWS / kStep) * kStep, column_ + i / (ROWS / kStep) * kLanes * 8);
  }

  // Adds the bias to the chunks that this thread copied; they have arrived.
  __device__ __forceinline__ void add_bias(T* tile, int head_dim) const {
    if (from_.bias == nullptr) return;
    for_chunks<1>([&](int row, int column) {
      const int head = head_ + (row >> log2_rows_);
      if (column >= head_dim || head >= heads_) return;
      const T* bias =
          static_cast<const T*>(from_.bias) + int64_t{head / heads_per_kv_} * head_dim + column;
      uint32_t* target = reinterpret_cast<uint32_t*>(tile + row * kPitch<D> + column);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t x = target[j];
        target[j] = ptx::pack<T>(ptx::low_of<T>(x) + ptx::to_float(bias[2 * j]),
                                 ptx::high_of<T>(x) + ptx::to_float(bias[2 * j + 1]));
      }
    });
  }

 private:
  __device__ __forceinline__ const T* of_head(int head) const {
    return sequence_ + int64_t{head / heads_per_kv_} * from_.head_stride;
  }

  // The token comes twice, so that one product gives the row's place in bytes.
  __device__ __forceinline__ void copy_row(T* target, const T* source, int token_twice, int stride,
                                           int length, int head_dim) const {
    const char* row = reinterpret_cast<const char*>(source) + int64_t{token_twice} * stride;
#pragma unroll
    for (int j = 0; j < kChunks; j += kLanes) {
      const bool exists = token_twice < 2 * length && column_ + 8 * j < head_dim;
      ptx::cp_async<16>(target + 8 * j, row + 16 * j, exists ? 16 : 0);
    }
  }

  const AttentionRows& from_;
  const T* sequence_;  // this thread's chunk of the sequence's first token, head 0
  const T* source_;    // the same of `head`
  int row_, column_, length_, head_, heads_, heads_per_kv_, log2_rows_;
};

// ---- products

// A operands, 16 M rows and D channels in shared memory; those of the first HELD steps of 16
// channels are loaded once into registers.
template <class T, int D, int M, int HELD = 0>
struct OperandRows {
  const T* tile;
  int own;  // where the row that this lane names to ldmatrix begins
  uint32_t held[M][HELD + (HELD == 0)][4];

  __device__ __forceinline__ OperandRows(const T* tile) : tile(tile) {
    const int lane = threadIdx.x % 32;
    own = lane % 16 * kPitch<D> + lane / 16 * 8;
    // Else computed anew in every turn of a loop. At D = 256 it would be one register too many.
    if (D <= 128) own = ptx::opaque(own);
  }
  __device__ __forceinline__ void hold() {
#pragma unroll
    for (int i = 0; i < M * HELD; ++i) load(held[i / HELD][i % HELD], i / HELD, i % HELD);
  }
  __device__ __forceinline__ void fragment(uint32_t (&a)[4], int m, int k) const {
    if (k >= HELD) return load(a, m, k);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = held[m][k][i];
  }

 private:
  __device__ __forceinline__ void load(uint32_t (&a)[4], int m, int k) const {
    ptx::ldmatrix_x4(a, tile + own + m * 16 * kPitch<D> + k * 16);
  }
};

// acc[m][n] = start[n] + rows of A . rows 8 n ... of `tile`: products along the channels. Pairs of
// n from `pairs` on are left out.
template <class T, int D, int M, int N, int HELD>
__device__ __forceinline__ void multiply_rows(float (&acc)[M][N][4], const float (&start)[N][4],
                                              const OperandRows<T, D, M, HELD>& rows, const T* tile,
                                              int pairs = N / 2) {
  const int lane = threadIdx.x % 32;
  const T* b_row = tile + (lane / 16 * 8 + lane % 8) * kPitch<D> + lane / 8 % 2 * 8;
#pragma unroll
  for (int i = 0; i < M * N * 4; ++i) acc[i / 4 / N][i / 4 % N][i % 4] = start[i / 4 % N][i % 4];
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
        const float (&sums)[N][4] = acc[m];
        // `start` itself is the operand: a copy of it would cost moves.
        const float (&from)[N][4] = k == 0 ? start : sums;
        ptx::mma_m16n8k16<T>(acc[m][n], a[m], {b[0], b[1]}, from[n]);
        ptx::mma_m16n8k16<T>(acc[m][n + 1], a[m], {b[2], b[3]}, from[n + 1]);
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

// What scores may have beside limits on the distance.
enum class Scores { plain, alibi, all };

__device__ __forceinline__ bool is_visible(const AttentionParams& p, int distance) {
  return distance <= p.window_left && distance >= -p.window_right;
}

// Whether a tile of all distances from `nearest` to `farthest` has anything visible.
__device__ __forceinline__ bool is_visible(const AttentionParams& p, int nearest, int farthest) {
  return farthest >= -p.window_right && nearest <= p.window_left;
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
