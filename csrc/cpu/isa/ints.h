// Ints: Vec::kWidth int32 lanes, and their ways from fp32 and to int8.
//
//   Ints::zero()
//   a + b, max(a, b)
//   bits_of(v)                the bits of fp32 lanes
//   to_ints(v)                to the nearest whole number, halves to even, for |v| < 2^22
//   reduce_add, reduce_max
//   store(i, p, n)            the first n lanes to p, each within [-128, 127]
//   store_four(i, p)          four of them to p, one behind the other
#pragma once
#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {

#if defined(TAUT_ISA_portable)

struct Ints {
  MaskLanes v;

  static Ints zero() { return {MaskLanes{}}; }
};
inline Ints operator+(Ints a, Ints b) { return {a.v + b.v}; }
inline Ints max(Ints a, Ints b) { return {a.v > b.v ? a.v : b.v}; }
inline Ints bits_of(Vec a) { return {(MaskLanes)a.lane}; }
inline Ints to_ints(Vec a) { return {__builtin_convertvector(round(a).lane, MaskLanes)}; }
inline int32_t reduce_add(Ints a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
inline int32_t reduce_max(Ints a) {
  const int32_t low = a.v[0] > a.v[1] ? a.v[0] : a.v[1];
  const int32_t high = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return low > high ? low : high;
}
inline void store(Ints a, int8_t* p, int n) {
  typedef int8_t ByteLanes __attribute__((vector_size(4)));
  const ByteLanes bytes = __builtin_convertvector(a.v, ByteLanes);
  std::memcpy(p, &bytes, n == Vec::kWidth ? 4 : static_cast<size_t>(n));
}

#elif defined(TAUT_ISA_avx2)

struct Ints {
  __m256i v;

  static Ints zero() { return {_mm256_setzero_si256()}; }
};
inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Ints max(Ints a, Ints b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline Ints bits_of(Vec a) { return {_mm256_castps_si256(a.v)}; }
inline Ints to_ints(Vec a) { return {_mm256_cvtps_epi32(a.v)}; }
inline int32_t reduce_add(Ints a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
inline int32_t reduce_max(Ints a) {
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
inline void store(Ints a, int8_t* p, int n) {
  __m128i x = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_packs_epi16(x, x);
  if (n == Vec::kWidth) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), x);
  } else {
    int8_t buffer[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(buffer), x);
    std::memcpy(p, buffer, static_cast<size_t>(n));
  }
}

#else

// Lanes of 32 bits for gcc, too: as long as they are 64-bit lanes to it (__m512i), gcc 12 copies
// sums between registers, and between registers and memory, around every vpdpbusd.
struct Ints {
  typedef int32_t Lanes __attribute__((vector_size(64)));
  Lanes v;

  Ints() = default;
  Ints(__m512i lanes) : v((Lanes)lanes) {}
  operator __m512i() const { return (__m512i)v; }
  static Ints zero() { return _mm512_setzero_si512(); }
};
inline Ints operator+(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Ints bits_of(Vec a) { return _mm512_castps_si512(a.v); }
inline Ints to_ints(Vec a) { return _mm512_cvtps_epi32(a.v); }
inline int32_t reduce_add(Ints a) { return _mm512_reduce_add_epi32(a); }
inline int32_t reduce_max(Ints a) { return _mm512_reduce_max_epi32(a); }
inline void store(Ints a, int8_t* p, int n) {
  const __m128i x = _mm512_cvtepi32_epi8(a);
  if (n == Vec::kWidth) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x);
  } else {
    _mm_mask_storeu_epi8(p, Vec::lanes_below(n), x);
  }
}
// Half the shuffles of four stores.
#define TAUT_STORE_FOUR
inline void store_four(const Ints (&i)[4], int8_t* p) {
  const __m512i low = _mm512_packs_epi32(i[0], i[1]), high = _mm512_packs_epi32(i[2], i[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high)));
}

#endif

#if !defined(TAUT_STORE_FOUR)
inline void store_four(const Ints (&i)[4], int8_t* p) {
  for (int v = 0; v < 4; ++v) store(i[v], p + v * Vec::kWidth, Vec::kWidth);
}
#endif

}  // namespace TAUT_ISA
}  // namespace taut
