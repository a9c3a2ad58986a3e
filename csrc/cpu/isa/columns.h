// Walking a row in vectors: whole ones, then a partial one.
#pragma once
#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {

// body(c, n): columns c to c + n; n is Vec::kWidth in all calls but the last.
template <class Body>
inline void for_columns(int64_t columns, const Body& body) {
  int64_t c = 0;
  for (; c + Vec::kWidth <= columns; c += Vec::kWidth) body(c, Vec::kWidth);
  if (c < columns) body(c, static_cast<int>(columns - c));
}

template <class T>
inline Vec load(const T* p, int n) {
  return n == Vec::kWidth ? Vec::load(p) : Vec::load(p, n);
}
template <class T>
inline void store(Vec v, T* p, int n) {
  n == Vec::kWidth ? v.store(p) : v.store(p, n);
}

}  // namespace TAUT_ISA
}  // namespace taut
