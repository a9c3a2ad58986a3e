// Sums of integer products with AVX2, which has no exact product of bytes in one instruction.
//
// 8-bit codes: bytes become 16-bit numbers, two at a time to a 32-bit lane (vpmaddwd). Rows of x
// are staged as such numbers, codes are spread once for all rows of a tile; doing both per product,
// a multiplication had as much to do around it as in it.
//
//   quad of codes   c0 c1 c2 c3      even: c0 c2, odd: c1 c3, each in 16 bits
//   row of x        all even pairs of the row's quads, then all odd pairs
#pragma once
#include "cpu/lowbit_codes.h"

namespace taut {
namespace TAUT_ISA {

// A row of signed bytes, `size` of them, at row + size: to even pairs at row, odd ones behind them.
inline void split_row(int8_t* row, int64_t size) {
  for (int64_t i = 0; i < size; i += 4 * Vec::kWidth) {
    const Bytes x = Bytes::load(row + size + i);
    signed_evens(x).store(row + i);
    signed_odds(x).store(row + size + i);
  }
}

// sums += pairs of 8-bit codes times so many rows of x; spread: evens or odds.
template <int Rows, int Vectors, class Spread>
inline void add_quad(const uint8_t* codes, const int8_t* x, int64_t x_stride, const Spread& spread,
                     Ints (&sums)[Rows][Vectors]) {
  const auto pairs_of = [&](int v) { return spread(Bytes::load(codes + 4 * v * Vec::kWidth)); };
  if constexpr (Rows == 1) {  // one vector of codes at a time: nearly all registers hold sums
    const Bytes value = Bytes::broadcast(x);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sums[0][v] = dot_pairs(sums[0][v], pairs_of(v), value);
  } else {
    Bytes pairs[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) pairs[v] = pairs_of(v);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Bytes value = Bytes::broadcast(x + r * x_stride);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] = dot_pairs(sums[r][v], pairs[v], value);
    }
  }
}

// sums += 8-bit codes of units [begin, end) times so many rows of x, split as above; `odd` is from
// even pairs to odd ones. Loops that are not unrolled: of two products for one sum gcc 12 would
// make a sum of their own, and spill those that wait for it.
template <int Rows, int Vectors>
inline void sum_shorts(const uint8_t* panel, int64_t channel, int64_t begin, int64_t end,
                       const int8_t* x, int64_t x_stride, int64_t odd,
                       Ints (&sums)[Rows][Vectors]) {
  const uint8_t* codes = panel + 4 * channel;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kQuads, last = first + kQuads;
#pragma GCC unroll 1
    for (int64_t quad = first; quad < last; ++quad)
      add_quad(codes + quad * kRowBytes, x + 4 * quad, x_stride, evens, sums);
#pragma GCC unroll 1
    for (int64_t quad = first; quad < last; ++quad)
      add_quad(codes + quad * kRowBytes, x + odd + 4 * quad, x_stride, odds, sums);
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
