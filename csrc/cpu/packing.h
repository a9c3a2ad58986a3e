// Parameters and kernels of the packing ops on the CPU.
#pragma once
#include <cstdint>

#include "cpu/dispatch.h"

namespace taut {

// A row of a mask: `length` elements, `stride` elements apart, each 2^log2_bytes bytes. A token is
// kept where any of the `value_bits` is set: all bits but the sign for floating point, where -0 is
// zero too.
struct MaskRow {
  const void* data;
  int64_t stride, length;
  int log2_bytes;
  uint64_t value_bits;
};

using CountKept = int64_t(const MaskRow&);
TAUT_DECLARE_KERNEL(count_kept, CountKept)

// Writes the flat row (`first` is that of the mask row's first element) and the rank of each kept
// token.
using WriteKept = void(const MaskRow&, int64_t first, int32_t* indices, int32_t* positions);
TAUT_DECLARE_KERNEL(write_kept, WriteKept)

// Rows of row_bytes bytes: those of `to` one after the other, those of `from` from_stride bytes
// apart.
struct MoveParams {
  const void* from;
  void* to;
  const void* indices;  // of rows of `from`
  int64_t from_stride, index_stride;
  int64_t row_bytes;
  bool wide_indices;  // int64, not int32
};

// For i in [begin, end): to[i] = from[indices[i]]. scatter_rows: zeros where the index is negative;
// its indices are int64, one after the other.
using MoveRows = void(const MoveParams&, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(gather_rows, MoveRows)
TAUT_DECLARE_KERNEL(scatter_rows, MoveRows)

}  // namespace taut
