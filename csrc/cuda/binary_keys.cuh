// Keys and values of attention over packed signs, in shared memory, and products with them.
//
// A region holds 128 keys of one head in two operands of products of bits:
//   keys    key j: its word and the word inverted, 16 bytes; zeros where there is no key. A query's
//           word and its inverse count 64 bits of a key's but for those that differ: agree.
//   values  channel c: words t = 0 ... 3 of 32 keys, 16 bytes: bit 31 - (2 n + e) of word t is the
//           value of key 8 n + 2 t + e
// The products of rows and keys 8 n ... 8 n + 7 leave keys 8 n + 2 t + e in lane t of a quad, so
// the signs of one row's products, shifted into a word one after the other, are word t of a row of
// attended keys: an operand against the values.
#pragma once
#include "cuda/binary_context.cuh"

namespace taut {

constexpr int kRegionKeys = 128, kKeyBytes = 16;
constexpr int kRegionBytes = (kRegionKeys + kChannels) * kKeyBytes;
constexpr int kGroupKeys = 32, kGroups = kRegionKeys / kGroupKeys;

__device__ __forceinline__ uint8_t* values_of(uint8_t* region) {
  return region + kRegionKeys * kKeyBytes;
}

// The word of a token and head of one sequence, 0 behind its last token.
struct SequenceBits {
  const uint64_t* data;
  int64_t token_stride;
  int length;

  __device__ __forceinline__ uint64_t at(int token) const {
    return token < length ? data[token * token_stride] : 0;
  }
};
__device__ __forceinline__ SequenceBits sequence_bits(const BitRows& rows, int begin, int length,
                                                      int head) {
  return {rows.data + begin * rows.token_stride + head * rows.head_stride, rows.token_stride,
          length};
}

__device__ __forceinline__ void store_key(uint8_t* region, int key, uint64_t word, bool exists) {
  const uint64_t inverse = exists ? ~word : 0;
  *reinterpret_cast<uint4*>(region + key * kKeyBytes) =
      make_uint4(static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32),
                 static_cast<uint32_t>(inverse), static_cast<uint32_t>(inverse >> 32));
}

// Which key of a region this lane holds for word t.
__device__ __forceinline__ int value_key(int t) {
  const int place = 31 - threadIdx.x % 32;
  return place / 2 * 8 + 2 * t + place % 2;
}

// 32 x 32 bits across the warp: bit c of lane l becomes bit l of lane c.
__device__ __forceinline__ uint32_t transpose_bits(uint32_t x) {
  const int lane = threadIdx.x % 32;
  uint32_t low = 0x0000ffffu;
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    const bool upper = lane & width;
    const uint32_t keep = upper ? ~low : low;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, x, width);
    x = (x & keep) | (__funnelshift_l(other, other, upper ? 32 - width : width) & ~keep);
    low ^= low << width / 2;
  }
  return x;
}

// Word t of all channels from the words of the warp's keys.
__device__ __forceinline__ void store_values(uint8_t* region, int t, uint64_t word) {
  uint32_t* values = reinterpret_cast<uint32_t*>(values_of(region)) + threadIdx.x % 32 * 4 + t;
  values[0] = transpose_bits(static_cast<uint32_t>(word));
  values[32 * 4] = transpose_bits(static_cast<uint32_t>(word >> 32));
}

// The rows of a warp: word and inverse of rows g and g + 8 of each tile of 16.
template <int M>
__device__ __forceinline__ void load_queries(uint32_t (&q)[M][2], const SequenceBits& rows,
                                             int first_row) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  const uint32_t flip = t < 2 ? 0 : ~0u;
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const uint64_t word = rows.at(first_row + i / 2 * 16 + lane / 4 + i % 2 * 8);
    q[i / 2][i % 2] = static_cast<uint32_t>(word >> t % 2 * 32) ^ flip;
  }
}

// use(m, n, d) for the products of each tile of rows and keys 8 n ... of the first `groups` groups
// of a region, in order; d starts at start[m].
template <int kMostGroups = kGroups, int M, class Use>
__device__ __forceinline__ void for_products(const uint32_t (&q)[M][2], const uint8_t* region,
                                             int groups, const int32_t (&start)[M][4],
                                             const Use& use) {
#pragma unroll
  for (int group = 0; group < kMostGroups; ++group) {
    if (group >= groups) break;
    uint32_t b[4];
    ptx::ldmatrix_x4(b, region + (group * kGroupKeys + threadIdx.x % 32) * kKeyBytes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        int32_t d[4];
        ptx::mma_m16n8k128_and(d, q[m], b[i], start[m]);
        use(m, group * 4 + i, d);
      }
    }
  }
}

// How many of a region's `keys` keys are this lane's: its first ones, as it meets them in order.
__device__ __forceinline__ int own_keys(int keys) {
  const int behind = most(keys - threadIdx.x % 4 * 2, 0);
  return behind / 8 * 2 + least(behind % 8, 2);
}

}  // namespace taut
