// The transposition that packing a weight is, where what stays together takes 32 bits: a float, a
// pair of bf16, four codes of 8 bits.
#pragma once
#include <cstdint>

#include "cpu/dispatch.h"

namespace taut {

// to[c][r] = from[r][c] for r < rows, c < columns. Rows are so many bytes apart; words are aligned,
// but for those of `from` where columns are whole vectors.
using TransposeWords = void(const void* from, int64_t from_stride, void* to, int64_t to_stride,
                            int64_t rows, int64_t columns);
TAUT_DECLARE_KERNEL(transpose_words, TransposeWords)

}  // namespace taut
