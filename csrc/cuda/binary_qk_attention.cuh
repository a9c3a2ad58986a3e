// Attention over packed queries and keys with values of 16 bits or int8 on sm_80 to sm_90: products
// of bits, an online softmax, products with the values. Tiles, softmax and plan are those of
// attention.cuh.
//
// Values of int8 become bf16, which holds them exactly, and weights are multiplied by the scales of
// their keys' tokens. That is so for outputs of fp16 too: weights times scales may leave its range
// but not that of bf16, and what bf16 rounds off them, 2^-9, is less than the values' own step.
#pragma once
#include <type_traits>

#include "cuda/attention.cuh"
#include "cuda/binary_keys.cuh"

namespace taut {

template <class T_, class Value, int M_>
struct BinaryQkShape {
  static constexpr bool kInt8 = sizeof(Value) == 1;
  using T = T_;                                        // of out
  using Operand = std::conditional_t<kInt8, bf16, T>;  // of values in products
  static constexpr int M = M_, N = 8, D = kChannels;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = kWarps * 16 * M, kKeys = 8 * N;
  // Values, and afterwards the block's rows on their way out.
  static constexpr int kTileBytes = kRows * kPitch<D> * 2;
  // Pairs of int8 travel as one 16-bit number.
  static constexpr int kCopied = kInt8 ? D / 2 : D;
  // Behind the tile and the keys: the tokens' scales, and the values of int8 as they come.
  static constexpr int kScales = kTileBytes + kKeys * kKeyBytes;
  static constexpr int kCodes = kScales + kKeys * 4;
  static constexpr int kSharedBytes = kInt8 ? kCodes + kKeys * kPitch<kCopied> * 2 : kScales;
  static_assert(kRows >= kKeys, "values fit where rows leave");

  // Of a score in columns 8 n to 8 n + 7.
  static __device__ __forceinline__ float exp2(float x, int) { return ptx::exp2_approx(x); }
};

// Half of each product, a whole number, minus the slope in these units times the distance; -inf for
// keys that do not exist. `distance` is that of row 0 and key 0.
template <class S>
__device__ __forceinline__ void half_products(float (&s)[S::M][S::N][4],
                                              const uint32_t (&q)[S::M][2], const uint8_t* keys,
                                              float slope, int distance, int count) {
  // An accumulator that starts at the bits of 1.5 * 2^23 is, as a float, that and what it counted.
  constexpr float kBase = 12582912.0f;
  int32_t start[S::M][4];
#pragma unroll
  for (int i = 0; i < S::M * 4; ++i) start[i / 4][i % 4] = 0x4b400000;
  for_products<S::N / 4>(q, keys, S::N / 4, start, [&](int m, int n, const int32_t (&d)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[m][n][i] = __int_as_float(d[i]) - (kBase + kChannels / 2);
  });
  if (slope == 0.0f && count >= S::kKeys) return;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < S::M * S::N * 4; ++i) {
    const int m = i / 4 / S::N, n = i / 4 % S::N;
    const int column = n * 8 + lane % 4 * 2 + i % 2;
    const int apart = distance + m * 16 + lane / 4 + i % 4 / 2 * 8 - column;
    float& x = s[m][n][i % 4];
    x = column < count ? x - slope * fabsf(static_cast<float>(apart)) : -kInfinity;
  }
}

// The int8 values that this thread copied to `codes`, which have arrived, as rows of `tile`.
template <class S, class Copies>
__device__ __forceinline__ void widen_values(bf16* tile, const bf16* codes, const Copies& copies) {
  copies.template for_chunks<S::kKeys>([&](int row, int column) {
    const uint4 chunk = *reinterpret_cast<const uint4*>(codes + row * kPitch<S::kCopied> + column);
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    uint32_t wide[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float x[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // 2^23 + 128 + code, whose lowest byte is 128 + code.
        const uint32_t large = __byte_perm(words[i] ^ 0x80808080u, 0x4b000000u, 0x7650u + k);
        x[k] = __uint_as_float(large) - (8388608.0f + 128.0f);
      }
      wide[2 * i] = ptx::pack<bf16>(x[0], x[1]);
      wide[2 * i + 1] = ptx::pack<bf16>(x[2], x[3]);
    }
    uint4* target = reinterpret_cast<uint4*>(tile + row * kPitch<S::D> + 2 * column);
    target[0] = make_uint4(wide[0], wide[1], wide[2], wide[3]);
    target[1] = make_uint4(wide[4], wide[5], wide[6], wide[7]);
  });
}

// Weights times the scales of their keys; the rows' sums are those without.
template <class S>
__device__ __forceinline__ void scale_weights(float (&s)[S::M][S::N][4], const float* scales) {
#pragma unroll
  for (int n = 0; n < S::N; ++n) {
    const float2 own = *reinterpret_cast<const float2*>(scales + n * 8 + threadIdx.x % 4 * 2);
#pragma unroll
    for (int i = 0; i < S::M * 4; ++i) s[i / 4][n][i % 4] *= i % 2 ? own.y : own.x;
  }
}

// S::kRows rows of one head.
template <class S>
__device__ __forceinline__ void attend_values(const BinaryQkAttentionParams& p,
                                              const BinaryItem& item) {
  using T = typename S::T;
  using Operand = typename S::Operand;
  constexpr int M = S::M, N = S::N, D = S::D;
  Operand* tile = reinterpret_cast<Operand*>(dynamic_shared());
  uint8_t* shared_keys = dynamic_shared() + S::kTileBytes;
  float* scales = reinterpret_cast<float*>(dynamic_shared() + S::kScales);
  Operand* copied = S::kInt8 ? reinterpret_cast<Operand*>(dynamic_shared() + S::kCodes) : tile;
  const int thread = threadIdx.x, warp_row = warp_index() * 16 * M;
  const int first_row = item.first_row + warp_row;
  const bool works = is_uniform(first_row < item.length);
  const SequenceBits keys = sequence_bits(p.k, item.begin, item.length, item.head);
  const RowCopies<Operand, S::kCopied, S::kKeys, S::kThreads> values(
      p.v, item.begin, item.length, item.head, p.batch.heads, 1, kOneHead);
  const float slope = p.alibi_slopes == nullptr ? 0.0f : p.alibi_slopes[item.head] / (2 * p.scale);

  uint32_t q[M][2];
  load_queries(q, sequence_bits(p.q, item.begin, item.length, item.head), first_row);
  float o[M][D / 8][4];
  set_zero(o);
  RowState<M> state;
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    state.base[i / 2][i % 2] = kNoBase;
    state.sum[i / 2][i % 2] = 0.0f;
  }

  uint64_t word = keys.at(thread);
#pragma unroll 1
  for (int key = 0; key < item.length; key += S::kKeys) {
    const int count = item.length - key;
    __syncthreads();  // nobody reads the keys and values before these any more
    if (thread < S::kKeys) store_key(shared_keys, thread, word, thread < count);
    values.start(copied, key, S::kCopied);
    if (S::kInt8 && thread < S::kKeys)
      ptx::cp_async<4>(scales + thread, p.v_scale + item.begin + key + thread,
                       thread < count ? 4 : 0);
    ptx::cp_async_commit();
    word = keys.at(key + S::kKeys + thread);
    __syncthreads();  // the keys are there

    float s[M][N][4];
    if (works) {
      half_products<S>(s, q, shared_keys, slope, first_row - key, count);
      online_softmax<S>(s, o, state, 2 * p.scale * kLog2E, 0.0f, 0.0f);
    }
    ptx::cp_async_wait<0>();
    if constexpr (S::kInt8) widen_values<S>(tile, copied, values);
    __syncthreads();  // the values are there
    if (S::kInt8 && works) scale_weights<S>(s, scales);
    if (works) multiply_weights<Operand, D>(o, s, tile, least((count + 15) / 16, N / 2));
  }
  __syncthreads();  // rows leave through the tile
  if (!works) return;
  float factor[M][2];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) factor[i / 2][i % 2] = 1.0f / row_sum(state.sum[i / 2][i % 2]);
  scale_rows(o, factor);
  const int64_t token = int64_t{item.begin} + first_row, stride = int64_t{p.batch.heads} * D;
  store_rows<T, D, M>(reinterpret_cast<T*>(tile) + warp_row * kPitch<D>, o,
                      static_cast<T*>(p.out) + token * stride + item.head * D, stride,
                      item.length - first_row, D);
}

// Tiles of kLongRows rows of the long sequences, or of kShortRows of the short ones and the rows of
// none: zeros, NaN everywhere when cu_seqlens is malformed.
template <class S>
__global__ void __launch_bounds__(S::kThreads)
    binary_qk_attention_kernel(const __grid_constant__ BinaryQkAttentionParams p) {
  constexpr bool kLong = S::kRows == kLongRows;
  static_assert(kLong || S::kRows == kShortRows, "a block takes an item whole");
  const BinaryBatch& b = p.batch;
  const int ends[2] = {clamp(b.plan[kPlanLong], 0, b.plan_items),
                       clamp(b.plan[kPlanFour], 0, b.plan_items)};
  const int first = kLong ? 0 : ends[0], last = kLong ? ends[0] : ends[1];
  const int64_t units = int64_t{last - first} * b.heads;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Item item = plan_item(b.plan, first + unit / b.heads, b.batch);
    if (item.sequence < 0) continue;
    const BinaryItem rows = find_rows(b, item, unit % b.heads);
    if (rows.first_row < rows.length) attend_values<S>(p, rows);
  }
  if (kLong) return;
  const uint32_t fill = b.plan[kPlanError] == kPlanFine ? 0 : 0x7fff7fff;  // NaN in bf16 and fp16
  fill_rest(b, p.out, kChannels * 2, fill, S::kThreads);
}

}  // namespace taut
