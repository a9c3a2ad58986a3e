// Bytes: Vec::kWidth groups of four bytes, one group to a 32-bit lane, and their products.
//
//   Bytes::load(p), b.store(p)  from and to 4 * kWidth bytes
//   Bytes::set(byte)           that byte everywhere
//   Bytes::broadcast(p)        the four bytes at p in all lanes
//   split_words(p, low, high)  the low and the high four bytes of the kWidth words of 64 bits at p
//   order_by_eights(p, out)    of 32 bytes: out[4 j + i] = p[8 i + j]
//   a & b, a | b, a << n, a >> n      of whole lanes: a shift brings in bits of neighbouring bytes
//   select(mask, a, b)         bits of a where the mask's are set, of b elsewhere
//   dot<Bits>(sums, codes, x)  sums + codes[0] x[0] + ... + codes[3] x[3] lane by lane, exact:
//                              codes unsigned and below 2^Bits, x signed
//   add_flags(pairs, flags, x) pairs + flags[0] x[0] + flags[1] x[1] half lane by half lane; flags
//                              are 0 or 1. 128 of them stay within 16 bits
//   add_pairs(sums, pairs)     sums + both halves, lane by lane
//   evens(codes), odds(codes)  AVX2 only: bytes 0 and 2, or 1 and 3, of every lane as its halves
//   signed_evens, signed_odds  AVX2 only: the same of signed bytes
//   dot_pairs(sums, a, b)      AVX2 only: sums + a[0] b[0] + a[1] b[1], a and b halves of lanes
//   set_ints(n), load_ints(p), store_ints(i, p), a - b, a * b      of Ints
//   to_vec(i)                  rounds to nearest even
//   member<I>(bytes)           byte I of every lane, as Ints
//   gather(table, i)           table[i] lane by lane
//   Table::load(values)        of 16 values, AVX-512 only; table.look_up(codes, out): the values of
//                              the four codes of every lane, each below 16: a Vec per code or a
//                              Pairs per two of them
#pragma once
#include "cpu/isa/ints.h"

namespace taut {
namespace TAUT_ISA {

#if defined(TAUT_ISA_portable)

typedef int16_t ShortLanes __attribute__((vector_size(16)));

struct Bytes {
  BitLanes v;

  static Bytes load(const void* p) {
    Bytes b;
    std::memcpy(&b.v, p, sizeof(b.v));
    return b;
  }
  void store(void* p) const { std::memcpy(p, &v, sizeof(v)); }
  static Bytes set(uint8_t byte) { return {BitLanes{} + 0x01010101u * byte}; }
  static Bytes broadcast(const int8_t* p) {
    uint32_t quad;
    std::memcpy(&quad, p, 4);
    return {BitLanes{} + quad};
  }
};
inline Bytes operator&(Bytes a, Bytes b) { return {a.v & b.v}; }
inline Bytes operator|(Bytes a, Bytes b) { return {a.v | b.v}; }
inline Bytes operator<<(Bytes a, int n) { return {a.v << n}; }
inline Bytes operator>>(Bytes a, int n) { return {a.v >> n}; }
inline Bytes select(Bytes mask, Bytes a, Bytes b) { return {(a.v & mask.v) | (b.v & ~mask.v)}; }

// The two whole numbers of 16 bits in every lane, added.
inline MaskLanes add_halves(ShortLanes a) {
  const MaskLanes lanes = (MaskLanes)a;
  return ((lanes << 16) >> 16) + (lanes >> 16);
}
template <int Bits>
inline Ints dot(Ints sums, Bytes codes, Bytes x) {
  // 255 * 128 is within 16 bits.
  const ShortLanes even = (ShortLanes)(codes.v & 0x00ff00ffu) * ((ShortLanes)(x.v << 8) >> 8);
  const ShortLanes odd = (ShortLanes)((codes.v >> 8) & 0x00ff00ffu) * ((ShortLanes)x.v >> 8);
  if constexpr (Bits <= 4) return {sums.v + add_halves(even + odd)};
  return {sums.v + add_halves(even) + add_halves(odd)};
}
inline Bytes add_flags(Bytes pairs, Bytes flags, Bytes x) {
  // A mask in place of the product: all ones where the flag is set.
  const BitLanes kept = x.v & flags.v * 255u;
  const ShortLanes even = (ShortLanes)(kept << 8) >> 8, odd = (ShortLanes)kept >> 8;
  return {(BitLanes)((ShortLanes)pairs.v + even + odd)};
}
inline Ints add_pairs(Ints sums, Bytes pairs) { return {sums.v + add_halves((ShortLanes)pairs.v)}; }
inline void split_words(const uint64_t* p, Bytes* low, Bytes* high) {
  const BitLanes a = Bytes::load(p).v, b = Bytes::load(p + Vec::kWidth / 2).v;
  low->v = __builtin_shuffle(a, b, BitLanes{0, 2, 4, 6});
  high->v = __builtin_shuffle(a, b, BitLanes{1, 3, 5, 7});
}
inline Ints set_ints(int32_t n) { return {MaskLanes{} + n}; }
inline Ints load_ints(const int32_t* p) {
  Ints i;
  std::memcpy(&i.v, p, sizeof(i.v));
  return i;
}
inline void store_ints(Ints a, int32_t* p) { std::memcpy(p, &a.v, sizeof(a.v)); }
inline Ints operator-(Ints a, Ints b) { return {a.v - b.v}; }
inline Ints operator*(Ints a, Ints b) { return {a.v * b.v}; }
inline Vec to_vec(Ints a) { return {__builtin_convertvector(a.v, FloatLanes)}; }
template <int I>
inline Ints member(Bytes a) {
  return {(MaskLanes)((a.v >> (8 * I)) & 255u)};
}
inline Vec gather(const float* table, Ints index) {
  Vec v;
  for (int i = 0; i < Vec::kWidth; ++i) v.lane[i] = table[index.v[i]];
  return v;
}

#elif defined(TAUT_ISA_avx2)

struct Bytes {
  __m256i v;

  static Bytes load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static Bytes set(uint8_t byte) { return {_mm256_set1_epi8(static_cast<char>(byte))}; }
  static Bytes broadcast(const int8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, 4);
    return {_mm256_set1_epi32(quad)};
  }
};
inline Bytes operator&(Bytes a, Bytes b) { return {_mm256_and_si256(a.v, b.v)}; }
inline Bytes operator|(Bytes a, Bytes b) { return {_mm256_or_si256(a.v, b.v)}; }
inline Bytes operator<<(Bytes a, int n) { return {_mm256_slli_epi32(a.v, n)}; }
inline Bytes operator>>(Bytes a, int n) { return {_mm256_srli_epi32(a.v, n)}; }
inline Bytes select(Bytes mask, Bytes a, Bytes b) {
  return {_mm256_or_si256(_mm256_and_si256(mask.v, a.v), _mm256_andnot_si256(mask.v, b.v))};
}

template <int Bits>
inline Ints dot(Ints sums, Bytes codes, Bytes x) {
  if constexpr (Bits <= 4) {  // pairs are within 16 bits: 2 * 15 * 128
    const __m256i pairs = _mm256_maddubs_epi16(codes.v, x.v);
    return {_mm256_add_epi32(sums.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
  }
  const __m256i even_codes = _mm256_and_si256(codes.v, _mm256_set1_epi16(255));
  const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16(x.v, 8), 8);
  const __m256i even = _mm256_madd_epi16(even_codes, even_x);
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes.v, 8), _mm256_srai_epi16(x.v, 8));
  return {_mm256_add_epi32(sums.v, _mm256_add_epi32(even, odd))};
}
inline Bytes add_flags(Bytes pairs, Bytes flags, Bytes x) {
  return {_mm256_add_epi16(pairs.v, _mm256_maddubs_epi16(flags.v, x.v))};
}
inline Bytes evens(Bytes codes) { return {_mm256_and_si256(codes.v, _mm256_set1_epi16(255))}; }
inline Bytes odds(Bytes codes) { return {_mm256_srli_epi16(codes.v, 8)}; }
inline Bytes signed_evens(Bytes x) { return {_mm256_srai_epi16(_mm256_slli_epi16(x.v, 8), 8)}; }
inline Bytes signed_odds(Bytes x) { return {_mm256_srai_epi16(x.v, 8)}; }
inline Ints dot_pairs(Ints sums, Bytes a, Bytes b) {
  return {_mm256_add_epi32(sums.v, _mm256_madd_epi16(a.v, b.v))};
}
inline Ints add_pairs(Ints sums, Bytes pairs) {
  return {_mm256_add_epi32(sums.v, _mm256_madd_epi16(pairs.v, _mm256_set1_epi16(1)))};
}
inline void split_words(const uint64_t* p, Bytes* low, Bytes* high) {
  const __m256i evens_first = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
  const __m256i a = _mm256_permutevar8x32_epi32(Bytes::load(p).v, evens_first);
  const __m256i b = _mm256_permutevar8x32_epi32(Bytes::load(p + 4).v, evens_first);
  low->v = _mm256_permute2x128_si256(a, b, 0x20);
  high->v = _mm256_permute2x128_si256(a, b, 0x31);
}
inline Ints set_ints(int32_t n) { return {_mm256_set1_epi32(n)}; }
inline Ints load_ints(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline void store_ints(Ints a, int32_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
inline Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline Vec to_vec(Ints a) { return {_mm256_cvtepi32_ps(a.v)}; }
template <int I>
inline Ints member(Bytes a) {
  return {_mm256_and_si256(_mm256_srli_epi32(a.v, 8 * I), _mm256_set1_epi32(255))};
}
inline Vec gather(const float* table, Ints index) {
  return {_mm256_i32gather_ps(table, index.v, 4)};
}

#else

struct Bytes {
  __m512i v;

  static Bytes load(const void* p) { return {_mm512_loadu_si512(p)}; }
  void store(void* p) const { _mm512_storeu_si512(p, v); }
  static Bytes set(uint8_t byte) { return {_mm512_set1_epi8(static_cast<char>(byte))}; }
  static Bytes broadcast(const int8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, 4);
    return {_mm512_set1_epi32(quad)};
  }
};
inline Bytes operator&(Bytes a, Bytes b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Bytes operator|(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Bytes operator<<(Bytes a, int n) { return {_mm512_slli_epi32(a.v, n)}; }
inline Bytes operator>>(Bytes a, int n) { return {_mm512_srli_epi32(a.v, n)}; }
inline Bytes select(Bytes mask, Bytes a, Bytes b) {
  return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xca)};
}

template <int Bits>
inline Ints dot(Ints sums, Bytes codes, Bytes x) {
#if defined(__AVX512VNNI__)
  return {_mm512_dpbusd_epi32(sums, codes.v, x.v)};
#else
  if constexpr (Bits <= 4) {  // pairs are within 16 bits: 2 * 15 * 128
    const __m512i pairs = _mm512_maddubs_epi16(codes.v, x.v);
    return {_mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
  const __m512i even_codes = _mm512_and_si512(codes.v, _mm512_set1_epi16(255));
  const __m512i even_x = _mm512_srai_epi16(_mm512_slli_epi16(x.v, 8), 8);
  const __m512i even = _mm512_madd_epi16(even_codes, even_x);
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes.v, 8), _mm512_srai_epi16(x.v, 8));
  return {_mm512_add_epi32(sums, _mm512_add_epi32(even, odd))};
#endif
}
inline Bytes add_flags(Bytes pairs, Bytes flags, Bytes x) {
  return {_mm512_add_epi16(pairs.v, _mm512_maddubs_epi16(flags.v, x.v))};
}
inline Ints add_pairs(Ints sums, Bytes pairs) {
  return {_mm512_add_epi32(sums, _mm512_madd_epi16(pairs.v, _mm512_set1_epi16(1)))};
}
inline void split_words(const uint64_t* p, Bytes* low, Bytes* high) {
  const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 8);
  const __m512i evens =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  low->v = _mm512_permutex2var_epi32(a, evens, b);
  high->v = _mm512_permutex2var_epi32(a, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b);
}
inline Ints set_ints(int32_t n) { return {_mm512_set1_epi32(n)}; }
inline Ints load_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_ints(Ints a, int32_t* p) { _mm512_storeu_si512(p, a); }
inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a, b)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm512_mullo_epi32(a, b)}; }
inline Vec to_vec(Ints a) { return {_mm512_cvtepi32_ps(a)}; }
template <int I>
inline Ints member(Bytes a) {
  return {_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * I), _mm512_set1_epi32(255))};
}
inline Vec gather(const float* table, Ints index) { return {_mm512_i32gather_ps(index, table, 4)}; }

struct Table {
  __m512 f32;
  __m512i halves;  // bf16, each twice: an index of 5 bits is as good as one of 4

  static Table load(const float* values) {
    const __m512 v = _mm512_loadu_ps(values);
    const __m256i half = Vec::narrow(v, static_cast<const bf16*>(nullptr));
    return {v, _mm512_broadcast_i64x4(half)};
  }
  void look_up(Bytes codes, Vec (&out)[4]) const {
    for (int i = 0; i < 4; ++i)
      out[i] = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes.v, 8 * i), f32)};
  }
  void look_up(Bytes codes, Pairs (&out)[2]) const {
    const __m512i first = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
    const __m512i second = _mm512_broadcast_i32x4(
        _mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
    const __m512i low = _mm512_shuffle_epi8(codes.v, first);
    const __m512i high = _mm512_shuffle_epi8(codes.v, second);
    out[0] = {_mm512_permutexvar_epi16(low, halves)};
    out[1] = {_mm512_permutexvar_epi16(high, halves)};
  }
};

#endif

inline void order_by_eights(const int8_t* p, int8_t* out) {
#if defined(TAUT_ISA_portable)
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 4; ++i) out[4 * j + i] = p[8 * i + j];
#else
  const __m128i* from = reinterpret_cast<const __m128i*>(p);
  __m128i* to = reinterpret_cast<__m128i*>(out);
  const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
  const __m128i first = _mm_unpacklo_epi8(a, _mm_srli_si128(a, 8));
  const __m128i second = _mm_unpacklo_epi8(b, _mm_srli_si128(b, 8));
  _mm_storeu_si128(to, _mm_unpacklo_epi16(first, second));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(first, second));
#endif
}

}  // namespace TAUT_ISA
}  // namespace taut
