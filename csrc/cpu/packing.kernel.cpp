// Finding the tokens of a padded batch, and moving rows by index.
#include "cpu/packing.h"

#include <cstring>

namespace taut {
namespace TAUT_ISA {
namespace {

template <class T, class Body>
inline void for_elements(const MaskRow& row, const Body& body) {
  const T* data = static_cast<const T*>(row.data);
  const T bits = static_cast<T>(row.value_bits);
  if (row.stride == 1) {
    for (int64_t i = 0; i < row.length; ++i) body(i, (data[i] & bits) != 0);
  } else {
    for (int64_t i = 0; i < row.length; ++i) body(i, (data[i * row.stride] & bits) != 0);
  }
}

// body(i, whether element i is kept) in order.
template <class Body>
inline void for_mask(const MaskRow& row, const Body& body) {
  switch (row.log2_bytes) {
    case 0: return for_elements<uint8_t>(row, body);
    case 1: return for_elements<uint16_t>(row, body);
    case 2: return for_elements<uint32_t>(row, body);
    default: return for_elements<uint64_t>(row, body);
  }
}

inline int64_t index_at(const MoveParams& p, int64_t i) {
  const int64_t at = i * p.index_stride;
  return p.wide_indices ? static_cast<const int64_t*>(p.indices)[at]
                        : static_cast<const int32_t*>(p.indices)[at];
}

inline void copy_row(const MoveParams& p, int64_t from, int64_t to) {
  std::memcpy(static_cast<char*>(p.to) + to * p.row_bytes,
              static_cast<const char*>(p.from) + from * p.from_stride,
              static_cast<size_t>(p.row_bytes));
}

inline void clear_rows(const MoveParams& p, int64_t begin, int64_t end) {
  std::memset(static_cast<char*>(p.to) + begin * p.row_bytes, 0,
              static_cast<size_t>((end - begin) * p.row_bytes));
}

}  // namespace

int64_t count_kept(const MaskRow& row) {
  int64_t count = 0;
  for_mask(row, [&](int64_t, bool kept) { count += kept; });
  return count;
}

void write_kept(const MaskRow& row, int64_t first, int32_t* indices, int32_t* positions) {
  int32_t rank = 0;
  for_mask(row, [&](int64_t i, bool kept) {
    if (!kept) return;
    indices[rank] = static_cast<int32_t>(first + i);
    positions[rank] = rank;
    ++rank;
  });
}

void gather_rows(const MoveParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) copy_row(p, index_at(p, i), i);
}

void scatter_rows(const MoveParams& p, int64_t begin, int64_t end) {
  const int64_t* indices = static_cast<const int64_t*>(p.indices);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i;
    while (i < end && indices[i] < 0) ++i;
    clear_rows(p, first, i);
    if (i < end) copy_row(p, indices[i], i);
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
