// Vec over AVX-512 F/BW/VL/DQ: 16 lanes. With AVX512_BF16 the store to bf16 is one instruction.
#pragma once
#include <immintrin.h>

#include "cpu/isa/half.h"

namespace taut {
namespace TAUT_ISA {

struct Mask {
  __mmask16 m;
};

struct Vec {
  static constexpr int kWidth = 16;
  static constexpr float kLowestPower = -160.0f;  // scale(x, kLowestPower) is 0
  __m512 v;

  static Vec set(float x) { return {_mm512_set1_ps(x)}; }
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static __mmask16 lanes_below(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec widen(__m256i raw, const bf16*) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
  }
  static Vec widen(__m256i raw, const f16*) { return {_mm512_cvtph_ps(raw)}; }
#if defined(__AVX512BF16__)
  static __m256i narrow(__m512 x, const bf16*) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
  static __m256i narrow(__m512 x, const bf16*) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_srli_epi32(rounded, 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(rounded);
  }
#endif
  static __m256i narrow(__m512 x, const f16*) {
    return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes_below(n), p)}; }
  template <class T>
  static Vec load(const T* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p);
  }
  template <class T>
  static Vec load(const T* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(lanes_below(n), p), p);
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, lanes_below(n), v); }
  template <class T>
  void store(T* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, p));
  }
  template <class T>
  void store(T* p, int n) const {
    _mm256_mask_storeu_epi16(p, lanes_below(n), narrow(v, p));
  }
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// VSCALEFPS takes the whole part itself. An infinity has the fraction 0.
struct Exponent {
  Vec fraction, power;
};
inline Exponent split_exponent(Vec a) {
  return {{_mm512_reduce_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}, a};
}
inline Vec scale(Vec a, Vec power) { return {_mm512_scalef_ps(a.v, power.v)}; }
// 32 values, aligned to a cache line, and one of them for each lane of places_of.
struct Table32 {
  __m512 low, high;

  explicit Table32(const float* p) : low(_mm512_load_ps(p)), high(_mm512_load_ps(p + 16)) {}
  Vec operator[](__m512i places) const { return {_mm512_permutex2var_ps(low, places, high)}; }
};
// The whole number next to a * b, modulo 32; 0 <= a * b < 2^22.
inline __m512i places_of(Vec a, Vec b) {
  return _mm512_castps_si512(fma(a, b, Vec::set(8388608.0f)).v);
}
inline Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }

struct Pairs {
  __m512i v;

  static Pairs load(const bf16* p) { return {_mm512_loadu_si512(p)}; }
  static Pairs set(const bf16* p) {
    int pair;
    std::memcpy(&pair, p, 4);
    return {_mm512_set1_epi32(pair)};
  }
  void store(bf16* p) const { _mm512_storeu_si512(p, v); }
  Vec even() const { return {_mm512_castsi512_ps(_mm512_slli_epi32(v, 16))}; }
  Vec odd() const {
    return {_mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-0x10000)))};
  }
};
#if defined(__AVX512BF16__)
inline Pairs pairs_of(Vec even, Vec odd) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
  const __m512i order = _mm512_or_si512(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_slli_epi32(
          _mm512_setr_epi32(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31), 16));
  return {_mm512_permutexvar_epi16(order, halves)};
}
inline Vec dot(Pairs a, Pairs b, Vec c) {
  return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
}
#else
inline Pairs pairs_of(Vec even, Vec odd) {
  constexpr const bf16* kType = nullptr;
  const __m512i low = _mm512_cvtepu16_epi32(Vec::narrow(even.v, kType));
  const __m512i high = _mm512_cvtepu16_epi32(Vec::narrow(odd.v, kType));
  return {_mm512_or_si512(low, _mm512_slli_epi32(high, 16))};
}
#endif

inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

}  // namespace TAUT_ISA
}  // namespace taut
