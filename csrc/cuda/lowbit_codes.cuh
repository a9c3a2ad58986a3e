// Packed low-bit codes (see pack_lowbit in ops/lowbit_gemm.py) to the signed bytes that integer
// products take.
#pragma once
#include "cuda/device.h"

namespace taut {

// Words (channels) from one row of a staged block to the next: 8 more than a panel's, so that lanes
// 4 g + t that read row r + t, channel g are in 32 banks.
constexpr int kCodeStride = 64 + 8;

// Rows of 64 words that a block of 64 input features has.
__host__ __device__ constexpr int code_rows(int bits) { return 2 * bits; }

// Four codes of one channel, those of features 4 quad to 4 quad + 3 of a block, as signed bytes
// 2^(8 - bits) (code - 2^(bits - 1)): a code in the top bits of its byte with the sign bit turned.
// `words` points to the channel in the block's first row.
template <int bits>
__device__ __forceinline__ uint32_t load_codes(const uint32_t* words, int quad) {
  constexpr uint32_t kSigns = 0x80808080u;
  if constexpr (bits == 8) {
    return words[quad * kCodeStride] ^ kSigns;
  } else if constexpr (bits == 4) {
    const uint32_t word = words[quad / 2 * kCodeStride] << (4 - 4 * (quad % 2));
    return (word & 0xf0f0f0f0u) ^ kSigns;
  } else {
    const uint32_t low = words[quad / 4 * kCodeStride] << (6 - 2 * (quad % 4));
    if constexpr (bits == 2) return (low & 0xc0c0c0c0u) ^ kSigns;
    const uint32_t top = words[(4 + quad / 8) * kCodeStride] << (7 - quad % 8);
    return (low >> 1 & 0x60606060u) | (~top & kSigns);
  }
}

}  // namespace taut
