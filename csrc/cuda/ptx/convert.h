// Number formats: conversions between fp32 and the 16-bit and tf32 operands of matrix products,
// and the approximate functions of the special-function unit.
#pragma once
#include <cstdint>

#include "common/types.h"

namespace taut::ptx {

// cvt.rn.{bf16x2,f16x2}.f32 (PTX ISA, "cvt"): two numbers rounded to nearest even, `low` in bits
// 0-15, as a fragment register holds the elements of columns c and c + 1.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

template <>
__device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

// cvt.rn.{bf16,f16}.f32 (PTX ISA, "cvt"): one number, rounded to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  bf16 d;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d.bits) : "f"(x));
  return d;
}

template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  f16 d;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d.bits) : "f"(x));
  return d;
}

template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

// A bf16 is the upper half of a float; cvt.f32.f16 (PTX ISA, "cvt") widens an f16. Both are exact.
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(uint32_t{x.bits} << 16);
}
__device__ __forceinline__ float to_float(f16 x) {
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x.bits));
  return d;
}
__device__ __forceinline__ float to_float(float x) { return x; }

// The two numbers of a packed register: bits 0-15 and bits 16-31.
template <class T>
__device__ __forceinline__ float low_of(uint32_t packed) {
  return to_float(T{static_cast<uint16_t>(packed)});
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t packed) {
  return to_float(T{static_cast<uint16_t>(packed >> 16)});
}

// cvt.rna.tf32.f32 (PTX ISA, "cvt"): to 10 bits of mantissa, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t d;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(x));
  return d;
}

// ex2.approx.ftz.f32 (PTX ISA, "ex2"): 2^x, relative error below 2^-22; 2^-inf = +0.
__device__ __forceinline__ float exp2_approx(float x) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// lg2.approx.ftz.f32 (PTX ISA, "lg2"): log2(x).
__device__ __forceinline__ float log2_approx(float x) {
  float d;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// tanh.approx.f32 (PTX ISA, "tanh"): relative error below 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  float d;
  asm("tanh.approx.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// max.NaN.f32 (PTX ISA, "max"): NaN if either is.
__device__ __forceinline__ float max_nan(float a, float b) {
  float d;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}

// rcp.approx.ftz.f32 (PTX ISA, "rcp"): 1 / x, at most 1 ulp off.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

}  // namespace taut::ptx
