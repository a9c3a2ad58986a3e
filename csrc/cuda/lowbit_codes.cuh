// Packed low-bit codes (see pack_lowbit in ops/lowbit_gemm.py) as products take them.
#pragma once
#include "cuda/device.h"

namespace taut {

// Words from one row of a staged block of `columns` channels to the next: lanes 4 g + t that read
// row r + t, channel g are in 32 banks.
__host__ __device__ constexpr int code_stride(int columns) { return columns + 8; }

// Rows of words that a block of 64 input features has.
__host__ __device__ constexpr int code_rows(int bits) { return 2 * bits; }

// Four codes of one channel, those of features 4 quad to 4 quad + 3 of a block, each in the top
// bits of its byte. `words` points to the channel in the block's first row.
template <int bits, int stride>
__device__ __forceinline__ uint32_t load_codes(const uint32_t* words, int quad) {
  if constexpr (bits == 8) {
    return words[quad * stride];
  } else if constexpr (bits == 4) {
    return words[quad / 2 * stride] << (4 - 4 * (quad % 2)) & 0xf0f0f0f0u;
  } else {
    const uint32_t low = words[quad / 4 * stride] << (6 - 2 * (quad % 4));
    if constexpr (bits == 2) return low & 0xc0c0c0c0u;
    const uint32_t top = words[(4 + quad / 8) * stride] << (7 - quad % 8);
    return (low >> 1 & 0x60606060u) | (top & 0x80808080u);
  }
}

// The same as signed bytes, 2^(8 - bits) (code - 2^(bits - 1)).
template <int bits, int stride>
__device__ __forceinline__ uint32_t load_signed_codes(const uint32_t* words, int quad) {
  return load_codes<bits, stride>(words, quad) ^ 0x80808080u;
}

// body(i) for i = thread, thread + threads, ... below `count`.
template <int count, int threads, class Body>
__device__ __forceinline__ void for_pieces(int thread, const Body& body) {
#pragma unroll
  for (int n = 0; n < (count + threads - 1) / threads; ++n) {
    const int i = thread + n * threads;
    if (count % threads == 0 || i < count) body(i);
  }
}

}  // namespace taut
