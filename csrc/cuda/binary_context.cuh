// What attention over packed signs gives: whole numbers, or bits of them.
#pragma once
#include "cuda/binary_batch.cuh"

namespace taut {

constexpr int kChannels = 64;

// In the accumulators of products with the values, a warp's 16 M rows: attended keys whose value is
// +1 by channel, and all attended keys.
template <int M>
struct Context {
  int32_t sums[M][kChannels / 8][4], attended[M][4];

  // Row g + 8 r of tile m, channel 8 c + 2 t + e.
  __device__ __forceinline__ int32_t at(int m, int r, int c, int e) const {
    return 2 * sums[m][c][2 * r + e] - attended[m][2 * r];
  }
};

__device__ __forceinline__ uint32_t quad_or(uint32_t x) {
  x |= __shfl_xor_sync(0xffffffffu, x, 1);
  return x | __shfl_xor_sync(0xffffffffu, x, 2);
}

template <int M>
__device__ __forceinline__ void store_context(const BinaryAttentionParams& p,
                                              const Context<M>& context, const BinaryItem& item,
                                              int first_row) {
  constexpr int32_t kLeast = -2147483647 - 1;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t heads = p.batch.heads;
  // By tile, row and half of the word.
  uint32_t above[M][2][2] = {}, between[M][2][2] = {};
#pragma unroll
  for (int c = 0; c < kChannels / 8; ++c) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int channel = c * 8 + 2 * t + e;
      int32_t limit = 0, low = kLeast, high = 0;
      if (p.thresholds != nullptr) {
        const int32_t* thresholds = p.thresholds + item.head * kChannels + channel;
        limit = thresholds[0];
        low = p.rails == 2 ? thresholds[heads * kChannels] : 0;
        high = p.rails == 2 ? thresholds[2 * heads * kChannels] : 0;
      }
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) {
        const int m = i / 2, r = i % 2, row = first_row + m * 16 + g + 8 * r;
        const int32_t x = context.at(m, r, c, e);
        const uint32_t bit = 1u << (c % 4 * 8 + e);
        above[m][r][c / 4] |= x > limit ? bit : 0;
        between[m][r][c / 4] |= x > low && x < high ? bit : 0;
        if (p.rails == 0 && row < item.length)
          static_cast<int32_t*>(
              p.out)[((int64_t{item.begin} + row) * heads + item.head) * kChannels + channel] = x;
      }
    }
  }
  if (p.rails == 0) return;
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int m = i / 2, r = i % 2, row = first_row + m * 16 + g + 8 * r;
    uint64_t words[2];
#pragma unroll
    for (int rail = 0; rail < 2; ++rail) {
      const uint32_t (&halves)[2] = rail == 0 ? above[m][r] : between[m][r];
      const uint32_t low = quad_or(halves[0] << 2 * t), high = quad_or(halves[1] << 2 * t);
      words[rail] = uint64_t{high} << 32 | low;
    }
    if (t == 0 && row < item.length) {
      uint64_t* out =
          static_cast<uint64_t*>(p.out) + (int64_t{item.begin} + row) * p.rails * heads + item.head;
      out[0] = words[0];
      if (p.rails == 2) out[heads] = words[1];
    }
  }
}

}  // namespace taut
