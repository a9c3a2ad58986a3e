// A value the compiler knows nothing about.
#pragma once

namespace taut {
namespace TAUT_ISA {

// p itself, but loads through it are neither merged with earlier ones nor moved before this point:
// what they bring need not live in registers in between.
template <class T>
inline T* opaque(T* p) {
  asm volatile("" : "+r"(p));
  return p;
}

}  // namespace TAUT_ISA
}  // namespace taut
