// Twin of csrc/cuda/ptx/bits.h.
#pragma once
#include <cstdint>

namespace taut::ptx {

template <int table>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(table >= 0 && table < 256, "the table has 8 bits");
  uint32_t d = 0;
  for (int row = 0; row < 8; ++row)
    if (table >> row & 1) d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return d;
}

template <class T>
T opaque(T x) {
  return x;
}

}  // namespace taut::ptx
