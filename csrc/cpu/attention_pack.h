// Copies of a few tokens of one head in the layouts of attention's products.
#pragma once
#include "cpu/attention.h"
#include "cpu/attention_products.h"
#include "cpu/isa/columns.h"

namespace taut {
namespace TAUT_ISA {
namespace {

inline int vector_part(int64_t left) {
  return left < Vec::kWidth ? static_cast<int>(left) : Vec::kWidth;
}

// One head of an AttentionInput from one token on.
template <class T>
struct Head {
  const T* data;
  const T* bias;
  int64_t stride;

  Head(const AttentionInput& in, int64_t head, int64_t token, int64_t head_dim)
      : data(static_cast<const T*>(in.data) + token * in.token_stride + head * in.head_stride),
        bias(in.bias ? static_cast<const T*>(in.bias) + head * head_dim : nullptr),
        stride(in.token_stride) {}

  Vec at(int64_t row, int64_t column, int n) const {
    const Vec x = load(data + row * stride + column, n);
    return bias ? x + load(bias + column, n) : x;
  }
  // Into L2, the same row of the next head: it lies behind this one, too far from the next row for
  // the processor to guess.
  void prefetch_next(int64_t row, int64_t head_dim) const {
    const char* next = reinterpret_cast<const char*>(data + row * stride + head_dim);
    for (int64_t at = 0; at < head_dim * static_cast<int64_t>(sizeof(T)); at += 64)
      __builtin_prefetch(next + at, 0, 2);
  }
};

// dst[row][column] as Element, zeros in the columns past head_dim and the rows past `rows`.
template <class T, class Element>
inline void pack_rows(Head<T> head, int64_t first, int64_t rows, int64_t padded_rows,
                      int64_t head_dim, int64_t columns, Element* dst) {
  const bool copy = sizeof(T) == sizeof(Element) && !head.bias;
  const int64_t units = head_dim * static_cast<int64_t>(sizeof(Element)) / 4;
  for (int64_t r = 0; r < rows; ++r) {
    Element* row = dst + r * columns;
    head.prefetch_next(first + r, head_dim);
    if (copy) {  // as 32-bit units, whatever they hold
      const float* from = reinterpret_cast<const float*>(head.data + (first + r) * head.stride);
      float* to = reinterpret_cast<float*>(row);
      for (int64_t c = 0; c < units; c += Vec::kWidth)
        store(load(from + c, vector_part(units - c)), to + c, vector_part(units - c));
    } else {
      for (int64_t c = 0; c < head_dim; c += Vec::kWidth) {
        const int n = vector_part(head_dim - c);
        store(head.at(first + r, c, n), row + c, n);
      }
    }
    if (columns > head_dim)
      std::memset(row + head_dim, 0, static_cast<size_t>(columns - head_dim) * sizeof(Element));
  }
  std::memset(dst + rows * columns, 0,
              static_cast<size_t>((padded_rows - rows) * columns) * sizeof(Element));
}

#if defined(TAUT_BF16_DOT)
// dst[row / 2][column] = the unit {row, row + 1}; `padded_rows` is even, rows past `rows` are 0.
template <class T>
inline void pack_row_pairs(Head<T> head, int64_t first, int64_t rows, int64_t padded_rows,
                           int64_t head_dim, int64_t columns, float* dst) {
  for (int64_t r = 0; r < rows; ++r) head.prefetch_next(first + r, head_dim);
  for (int64_t r = 0; r < padded_rows; r += 2)
    for (int64_t c = 0; c < columns; c += Vec::kWidth) {
      const int n = c < head_dim ? vector_part(head_dim - c) : 0;
      const Vec low = r < rows && n > 0 ? head.at(first + r, c, n) : Vec::zero();
      const Vec high = r + 1 < rows && n > 0 ? head.at(first + r + 1, c, n) : Vec::zero();
      to_pairs(low, high).store(dst + r / 2 * columns + c);
    }
}
#endif

// Hands out aligned pieces of the launcher's scratch.
class Arena {
 public:
  explicit Arena(void* scratch) : next_(static_cast<char*>(scratch)) {}
  template <class T>
  T* take(int64_t count) {
    char* piece = next_;
    next_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(piece);
  }

 private:
  char* next_;
};

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
