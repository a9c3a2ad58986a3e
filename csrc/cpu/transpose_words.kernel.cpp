// Transposition in squares of a vector's width, through registers.
#include "cpu/transpose_words.h"

#include "cpu/isa/columns.h"
#include "cpu/isa/transpose.h"

namespace taut {
namespace TAUT_ISA {

void transpose_words(const void* from, int64_t from_stride, void* to, int64_t to_stride,
                     int64_t rows, int64_t columns) {
  constexpr int64_t kSide = Vec::kWidth;
  const auto source = [&](int64_t row, int64_t column) {
    return reinterpret_cast<const float*>(static_cast<const char*>(from) + row * from_stride) +
           column;
  };
  const auto target = [&](int64_t row, int64_t column) {
    return reinterpret_cast<float*>(static_cast<char*>(to) + row * to_stride) + column;
  };
  for_columns(columns, [&](int64_t column, int width) {
    for_columns(rows, [&](int64_t row, int height) {
      Vec square[kSide];
      for (int64_t r = 0; r < kSide; ++r)
        square[r] = r < height ? load(source(row + r, column), width) : Vec::zero();
      transpose(square);
      for (int64_t c = 0; c < width; ++c) store(square[c], target(column + c, row), height);
    });
  });
}

}  // namespace TAUT_ISA
}  // namespace taut
