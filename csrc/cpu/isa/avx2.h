// Vec over AVX2 + FMA + F16C: 8 lanes.
#pragma once
#include <immintrin.h>

#include "cpu/isa/half.h"

namespace taut {
namespace TAUT_ISA {

struct Mask {
  __m256 m;
};

struct Vec {
  static constexpr int kWidth = 8;
  static constexpr float kLowestPower = -127.0f;  // scale(x, kLowestPower) is 0
  __m256 v;

  static Vec set(float x) { return {_mm256_set1_ps(x)}; }
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static __m256i lanes_below(int n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), index);
  }
  static Vec widen(__m128i raw, const bf16*) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))};
  }
  static Vec widen(__m128i raw, const f16*) { return {_mm256_cvtph_ps(raw)}; }
  static __m128i narrow(__m256 x, const bf16*) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    rounded = _mm256_srli_epi32(rounded, 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, quiet, is_nan);
    const __m256i packed = _mm256_packus_epi32(rounded, rounded);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
  static __m128i narrow(__m256 x, const f16*) {
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, lanes_below(n))}; }
  template <class T>
  static Vec load(const T* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), p);
  }
  template <class T>
  static Vec load(const T* p, int n) {
    T buffer[kWidth] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
    return load(buffer);
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, lanes_below(n), v); }
  template <class T>
  void store(T* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, p));
  }
  template <class T>
  void store(T* p, int n) const {
    T buffer[kWidth];
    store(buffer);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
  }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec pow2(Vec a) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
struct Exponent {
  Vec fraction, power;
};
inline Exponent split_exponent(Vec a) {
  const Vec bounded = max(Vec::set(Vec::kLowestPower), a);
  const Vec whole = {_mm256_floor_ps(bounded.v)};
  return {bounded - whole, whole};
}
inline Vec scale(Vec a, Vec power) { return a * pow2(power); }
inline Mask operator<(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m.m)}; }

struct Pairs {
  __m256i v;

  static Pairs load(const bf16* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  static Pairs set(const bf16* p) {
    int pair;
    std::memcpy(&pair, p, 4);
    return {_mm256_set1_epi32(pair)};
  }
  void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  Vec even() const { return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16))}; }
  Vec odd() const {  // by shifts: a mask would take one of the 16 registers for good
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(v, 16), 16))};
  }
};

inline Pairs pairs_of(Vec even, Vec odd) {
  constexpr const bf16* kType = nullptr;
  const __m256i low = _mm256_cvtepu16_epi32(Vec::narrow(even.v, kType));
  const __m256i high = _mm256_cvtepu16_epi32(Vec::narrow(odd.v, kType));
  return {_mm256_or_si256(low, _mm256_slli_epi32(high, 16))};
}

inline float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

}  // namespace TAUT_ISA
}  // namespace taut
