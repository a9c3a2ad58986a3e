// Bit manipulation that the language has no name for.
#pragma once
#include <cstdint>

namespace taut::ptx {

// lop3.b32 (PTX ISA, "lop3"): any function of three bits, for all 32 at once. `table` is what the
// function makes of a = 0xF0, b = 0xCC, c = 0xAA.
template <int table>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(table >= 0 && table < 256, "the table has 8 bits");
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(table));
  return d;
}

// x, without an instruction, as a value of which the compiler knows nothing: it stays in a register
// instead of being derived from others where it is used.
__device__ __forceinline__ int opaque(int x) {
  asm("" : "+r"(x));
  return x;
}
// Volatile, so that equal values stay in registers of their own: operands in groups of registers
// would otherwise be put together by moves.
__device__ __forceinline__ float opaque(float x) {
  asm volatile("" : "+f"(x));
  return x;
}
template <class T>
__device__ __forceinline__ T* opaque(T* x) {
  asm("" : "+l"(x));
  return x;
}

}  // namespace taut::ptx
