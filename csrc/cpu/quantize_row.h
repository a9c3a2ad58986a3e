// A row to int8 with a scale of its own: for kernels that quantize, to the bit as
// `reference/quantize.py` defines it ("absmax" and "full_range" grids). Rows are fp32, bf16 or f16.
#pragma once
#include "cpu/isa/columns.h"
#include "cpu/isa/ints.h"

namespace taut {
namespace TAUT_ISA {

// scale = absmax / top; codes are at most `highest`.
struct Grid {
  float top;
  float highest;
};
inline Grid absmax_grid(int64_t bits) {
  const float top = static_cast<float>((1 << (bits - 1)) - 1);
  return {top, top};
}
inline Grid full_range_grid(int64_t bits) {
  const float half = static_cast<float>(1 << (bits - 1));
  return {half, half - 1.0f};
}

// The largest magnitude, or NaN where something is not finite. `bits` holds, lane by lane, the
// maximum of bits_of(abs(v)) over a row: magnitudes sort as their bits do, infinity and NaN on top.
inline float absmax_of(Ints bits) {
  const int32_t most = reduce_max(bits);
  return as_float(most < 0x7f800000 ? static_cast<uint32_t>(most) : 0x7fc00000u);
}
inline float absmax_of(const float* row, int64_t columns) {
  Ints bits = Ints::zero();
  for_columns(columns, [&](int64_t c, int n) { bits = max(bits, bits_of(abs(load(row + c, n)))); });
  return absmax_of(bits);
}
// Half precision is compared before it is widened. The compiler vectorises this as it stands.
template <class T>
inline float absmax_of(const T* row, int64_t columns) {
  int16_t most = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const int16_t bits = static_cast<int16_t>(row[c].bits & 0x7fff);
    most = bits > most ? bits : most;
  }
  const float absmax = to_float(T{static_cast<uint16_t>(most)});
  return absmax - absmax == 0.0f ? absmax : as_float(0x7fc00000u);
}

// Writes the codes of a row whose absmax_of is known, and returns their sum; 0 where it is NaN.
// The product is rounded to fp32 before it is rounded to a whole number: min keeps a compiler from
// fusing the two.
template <class T>
inline int32_t write_codes(const T* row, int64_t columns, float absmax, Grid grid, int8_t* q) {
  if (absmax != absmax) {
    std::memset(q, 0, static_cast<size_t>(columns));
    return 0;
  }
  // Below that the inverse would be infinite, and 0 times it NaN.
  const Vec inverse = Vec::set(grid.top / (absmax < 1e-36f ? 1e-36f : absmax));
  const Vec highest = Vec::set(grid.highest);
  const auto codes_at = [&](int64_t c, int n) {
    return to_ints(min(load(row + c, n) * inverse, highest));
  };
  Ints sum = Ints::zero();
  int64_t begin = 0;
  for (; begin + 4 * Vec::kWidth <= columns; begin += 4 * Vec::kWidth) {
    Ints codes[4];
    for (int v = 0; v < 4; ++v) codes[v] = codes_at(begin + v * Vec::kWidth, Vec::kWidth);
    sum = sum + ((codes[0] + codes[1]) + (codes[2] + codes[3]));
    store_four(codes, q + begin);
  }
  for_columns(columns - begin, [&](int64_t c, int n) {
    const Ints codes = codes_at(begin + c, n);
    sum = sum + codes;  // lanes past the end are 0
    store(codes, q + begin + c, n);
  });
  return reduce_add(sum);
}

struct QuantizedRow {
  float scale;  // NaN where the row is not finite
  int32_t sum;  // of the codes
};
template <class T>
inline QuantizedRow quantize_row(const T* row, int64_t columns, Grid grid, int8_t* q) {
  const float absmax = absmax_of(row, columns);
  return {absmax / grid.top, write_codes(row, columns, absmax, grid, q)};
}

// body(g, c, n) for every run of group_size columns, c to c + n; the last may be shorter; 0: one
// run.
template <class Body>
inline void for_groups(int64_t columns, int64_t group_size, const Body& body) {
  const int64_t size = group_size ? group_size : columns;
  for (int64_t c = 0, g = 0; c < columns; c += size, ++g)
    body(g, c, c + size < columns ? size : columns - c);
}

// quantize_row for every group of columns. scales and sums hold a value per group; sums may be
// null.
template <class T>
inline void quantize_groups(const T* row, int64_t columns, int64_t group_size, Grid grid, int8_t* q,
                            float* scales, int32_t* sums) {
  for_groups(columns, group_size, [&](int64_t g, int64_t c, int64_t n) {
    const QuantizedRow group = quantize_row(row + c, n, grid, q + c);
    scales[g] = group.scale;
    if (sums) sums[g] = group.sum;
  });
}

}  // namespace TAUT_ISA
}  // namespace taut
