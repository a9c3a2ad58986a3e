// Twin of csrc/cuda/ptx/convert.h. The approximate functions are exact here, but flush subnormals.
#pragma once
#include <cfloat>
#include <cmath>

#include "common/types.h"
#include "runtime.h"

namespace taut::ptx {

template <class T>
uint32_t pack(float low, float high);
template <>
inline uint32_t pack<bf16>(float low, float high) {
  return simt::to_bf16(low) | uint32_t{simt::to_bf16(high)} << 16;
}
template <>
inline uint32_t pack<f16>(float low, float high) {
  return simt::to_f16(low) | uint32_t{simt::to_f16(high)} << 16;
}

template <class T>
T from_float(float x);
template <>
inline bf16 from_float<bf16>(float x) {
  return {simt::to_bf16(x)};
}
template <>
inline f16 from_float<f16>(float x) {
  return {simt::to_f16(x)};
}
template <>
inline float from_float<float>(float x) {
  return x;
}

inline float to_float(bf16 x) { return simt::from_bf16(x.bits); }
inline float to_float(f16 x) { return simt::from_f16(x.bits); }
inline float to_float(float x) { return x; }

template <class T>
float low_of(uint32_t packed) {
  return to_float(T{static_cast<uint16_t>(packed)});
}
template <class T>
float high_of(uint32_t packed) {
  return to_float(T{static_cast<uint16_t>(packed >> 16)});
}

inline uint32_t to_tf32(float x) { return simt::to_tf32(x); }

inline float flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x; }
inline float exp2_approx(float x) { return flushed(exp2f(flushed(x))); }
inline float log2_approx(float x) { return flushed(log2f(flushed(x))); }
inline float tanh_approx(float x) { return tanhf(x); }
inline float max_nan(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : fmaxf(a, b);
}
inline float reciprocal_approx(float x) { return flushed(1.0f / flushed(x)); }

}  // namespace taut::ptx
