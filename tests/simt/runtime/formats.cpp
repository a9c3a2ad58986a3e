// Number formats and the arithmetic of matrix products.
#include <cmath>
#include <cstring>
#include <vector>

#include "products.h"

namespace simt {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, all ones is NaN.
float from_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float x;
  if (exponent == 15 && mantissa == 7)
    x = NAN;
  else
    x = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
  return bits & 0x80 ? -x : x;
}

// The elements of `count` words as floats.
void widen(Element element, const uint32_t* words, int count, float* out) {
  for (int i = 0; i < count; ++i) {
    const uint32_t w = words[i];
    switch (element) {
      case Element::bf16:
        *out++ = float_of(w << 16);
        *out++ = float_of(w & 0xffff0000);
        break;
      case Element::f16:
        *out++ = from_f16(w);
        *out++ = from_f16(w >> 16);
        break;
      // The tensor core does not look at the low 13 bits.
      case Element::tf32: *out++ = float_of(w & 0xffffe000); break;
      case Element::e4m3:
        for (int j = 0; j < 4; ++j) *out++ = from_e4m3(w >> 8 * j);
        break;
      default: break;
    }
  }
}

int32_t integer_dot(Element element, const uint32_t* a, const uint32_t* b, int words) {
  int32_t sum = 0;
  for (int i = 0; i < words; ++i) {
    if (element == Element::b1_and)
      sum += __builtin_popcount(a[i] & b[i]);
    else if (element == Element::b1_xor)
      sum += __builtin_popcount(a[i] ^ b[i]);
    else
      for (int j = 0; j < 32; j += 8)
        sum += static_cast<int8_t>(a[i] >> j) * static_cast<int8_t>(b[i] >> j);
  }
  return sum;
}

}  // namespace

uint16_t to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if (std::isnan(x)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

uint16_t to_f16(float x) {
  if (std::isnan(x)) return 0x7fff;
  const _Float16 half = x;
  uint16_t bits;
  memcpy(&bits, &half, 2);
  return bits;
}

float from_bf16(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

float from_f16(uint16_t bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return half;
}

uint32_t to_tf32(float x) {
  const uint32_t bits = bits_of(x);
  if (!std::isfinite(x)) return std::isnan(x) ? 0x7fffffff : bits;
  return (bits + 0x1000) & 0xffffe000;
}

int element_bits(Element element) {
  switch (element) {
    case Element::bf16:
    case Element::f16: return 16;
    case Element::tf32: return 32;
    case Element::e4m3:
    case Element::s8: return 8;
    default: return 1;
  }
}

__attribute__((target_clones("avx2", "default"))) void multiply(Element element, int m, int n,
                                                                int words, const uint32_t* a,
                                                                const uint32_t* b, int stride,
                                                                uint32_t* sums) {
  const bool integers =
      element == Element::s8 || element == Element::b1_and || element == Element::b1_xor;
  if (integers) {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j)
        sums[i * n + j] += integer_dot(element, a + i * stride, b + j * stride, words);
    return;
  }
  // k-major copies of B, so that the loop over columns runs over neighbours.
  const int k = words * 32 / element_bits(element);
  static std::vector<float> row, column, columns;
  static std::vector<double> totals;
  row.resize(k);
  column.resize(k);
  columns.resize(static_cast<size_t>(k) * n);
  totals.resize(n);
  for (int j = 0; j < n; ++j) {
    widen(element, b + j * stride, words, column.data());
    for (int l = 0; l < k; ++l) columns[l * n + j] = column[l];
  }
  for (int i = 0; i < m; ++i) {
    widen(element, a + i * stride, words, row.data());
    for (int j = 0; j < n; ++j) totals[j] = float_of(sums[i * n + j]);
    for (int l = 0; l < k; ++l) {
      const double x = row[l];
      const float* from = &columns[l * n];
      for (int j = 0; j < n; ++j) totals[j] += x * from[j];
    }
    for (int j = 0; j < n; ++j) sums[i * n + j] = bits_of(static_cast<float>(totals[j]));
  }
}

}  // namespace simt
