// Scalar conversions of the half-precision storage types, rounding to nearest even.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace taut {
namespace TAUT_ISA {

inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return as_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x400u) {  // subnormal: magnitude * 2^-24, exact in fp32
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return as_float(as_bits(value) | sign);
  }
  return as_float(sign | ((magnitude << 13) + (112u << 23)));
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, bf16* out) {
  const uint32_t bits = as_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN stays NaN
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void from_float(float x, f16* out) {
  const uint32_t bits = as_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out->bits = static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    out->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds at 2^-24
    const float rounded = as_float(magnitude) + 0.5f;
    out->bits = static_cast<uint16_t>(sign | (as_bits(rounded) - 0x3f000000u));
  } else {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    out->bits = static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
