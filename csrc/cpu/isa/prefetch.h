// Asking for memory before it is needed.
#pragma once
#include <cstdint>

namespace taut {
namespace TAUT_ISA {

enum class Access : int { read, write };

// Asks for the cache lines of columns [column, column + columns) of rows [row, row + rows) of a
// matrix of elements of so many bytes, its rows `stride` elements apart. Inlined by force, as must
// be what calls it alone: gcc 12 finds that a function which only prefetches has no effect.
template <Access kAccess>
__attribute__((always_inline)) inline void prefetch_part(const void* matrix, int64_t size,
                                                         int64_t stride, int64_t row, int64_t rows,
                                                         int64_t column, int64_t columns) {
  const char* first = static_cast<const char*>(matrix) + (row * stride + column) * size;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t at = 0; at < columns * size; at += 64)
      __builtin_prefetch(first + r * stride * size + at, static_cast<int>(kAccess));
}

}  // namespace TAUT_ISA
}  // namespace taut
