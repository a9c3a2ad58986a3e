// Bytes64: 64 unsigned byte lanes, and the changes of order that turn 64 words into such lanes.
//
//   Bytes64::load(p), Bytes64::set(x), v.store(p)
//   + -, min(a, b)                        wrapping; unsigned
//   v.top_bits(), v.below(limit)          a bit per lane: its bit 7; lane < limit, unsigned
//
// Only for avx2 and above:
//   v.add_to(sums)                        adds the lanes to 64 uint16
//   a & b, a ^ b, add_saturating(a, b), shift_right_4(v) of 16-bit lanes
//   lookup16(table, index)                table[index % 16], 0 where index has bit 7 set
//   ByteSum                               adds up lanes
//
//   reduce_min(v)
//
//   transpose_bytes(words, planes)        byte b of word w goes to planes[64 b + w]
//   transpose_bits(words, columns)        bit c of word w goes to bit w of columns[c]
#pragma once
#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {

constexpr int kWord = 64;

#if defined(TAUT_ISA_portable)

typedef uint8_t ByteLanes __attribute__((vector_size(64)));

struct Bytes64 {
  ByteLanes v;

  static Bytes64 load(const uint8_t* p) {
    Bytes64 x;
    std::memcpy(&x.v, p, 64);
    return x;
  }
  static Bytes64 set(uint8_t x) { return {ByteLanes{} + x}; }
  void store(uint8_t* p) const { std::memcpy(p, &v, 64); }
  uint64_t top_bits() const {
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) {
      uint64_t eight;
      std::memcpy(&eight, reinterpret_cast<const char*>(&v) + 8 * i, 8);
      // Gathers the top bits of eight bytes in the top byte, the first lane lowest.
      bits |= (((eight >> 7) & 0x0101010101010101u) * 0x0102040810204080u >> 56) << (8 * i);
    }
    return bits;
  }
  uint64_t below(uint8_t limit) const { return Bytes64{(ByteLanes)(v < limit)}.top_bits(); }
};
inline Bytes64 operator+(Bytes64 a, Bytes64 b) { return {a.v + b.v}; }
inline Bytes64 operator-(Bytes64 a, Bytes64 b) { return {a.v - b.v}; }
inline Bytes64 min(Bytes64 a, Bytes64 b) { return {a.v < b.v ? a.v : b.v}; }

#elif defined(TAUT_ISA_avx2)

struct Bytes64 {
  __m256i low, high;

  static Bytes64 load(const uint8_t* p) {
    const __m256i* at = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static Bytes64 set(uint8_t x) {
    const __m256i all = _mm256_set1_epi8(static_cast<char>(x));
    return {all, all};
  }
  void store(uint8_t* p) const {
    __m256i* at = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(at, low);
    _mm256_storeu_si256(at + 1, high);
  }
  uint64_t top_bits() const {
    return static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
           static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(high))) << 32;
  }
  uint64_t below(uint8_t limit) const {
    const __m256i at_least = _mm256_set1_epi8(static_cast<char>(limit));
    return ~Bytes64{_mm256_cmpeq_epi8(_mm256_max_epu8(low, at_least), low),
                    _mm256_cmpeq_epi8(_mm256_max_epu8(high, at_least), high)}
                .top_bits();
  }
  void add_to(uint16_t* sums) const {
    const __m128i part[4] = {_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1),
                             _mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)};
    for (int i = 0; i < 4; ++i) {
      __m256i* at = reinterpret_cast<__m256i*>(sums) + i;
      _mm256_storeu_si256(at,
                          _mm256_add_epi16(_mm256_loadu_si256(at), _mm256_cvtepu8_epi16(part[i])));
    }
  }
};
inline Bytes64 operator+(Bytes64 a, Bytes64 b) {
  return {_mm256_add_epi8(a.low, b.low), _mm256_add_epi8(a.high, b.high)};
}
inline Bytes64 operator-(Bytes64 a, Bytes64 b) {
  return {_mm256_sub_epi8(a.low, b.low), _mm256_sub_epi8(a.high, b.high)};
}
inline Bytes64 min(Bytes64 a, Bytes64 b) {
  return {_mm256_min_epu8(a.low, b.low), _mm256_min_epu8(a.high, b.high)};
}
inline Bytes64 operator&(Bytes64 a, Bytes64 b) {
  return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
inline Bytes64 operator^(Bytes64 a, Bytes64 b) {
  return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}
inline Bytes64 add_saturating(Bytes64 a, Bytes64 b) {
  return {_mm256_adds_epu8(a.low, b.low), _mm256_adds_epu8(a.high, b.high)};
}
inline Bytes64 shift_right_4(Bytes64 a) {
  return {_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)};
}
inline Bytes64 lookup16(const uint8_t* table, Bytes64 index) {
  const __m256i twice =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(twice, index.low), _mm256_shuffle_epi8(twice, index.high)};
}

// Adds up lanes, 64 bits wide.
struct ByteSum {
  __m256i v = _mm256_setzero_si256();

  void add(Bytes64 x) {
    const __m256i zero = _mm256_setzero_si256();
    v = _mm256_add_epi64(
        v, _mm256_add_epi64(_mm256_sad_epu8(x.low, zero), _mm256_sad_epu8(x.high, zero)));
  }
  int64_t total() const {
    int64_t lanes[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), v);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
};

#else

struct Bytes64 {
  __m512i v;

  static Bytes64 load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  static Bytes64 set(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  uint64_t top_bits() const { return _mm512_movepi8_mask(v); }
  uint64_t below(uint8_t limit) const {
    return _mm512_cmplt_epu8_mask(v, _mm512_set1_epi8(static_cast<char>(limit)));
  }
  void add_to(uint16_t* sums) const {
    const __m256i part[2] = {_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)};
    for (int i = 0; i < 2; ++i)
      _mm512_storeu_si512(sums + 32 * i, _mm512_add_epi16(_mm512_loadu_si512(sums + 32 * i),
                                                          _mm512_cvtepu8_epi16(part[i])));
  }
};
inline Bytes64 operator+(Bytes64 a, Bytes64 b) { return {_mm512_add_epi8(a.v, b.v)}; }
inline Bytes64 operator-(Bytes64 a, Bytes64 b) { return {_mm512_sub_epi8(a.v, b.v)}; }
inline Bytes64 min(Bytes64 a, Bytes64 b) { return {_mm512_min_epu8(a.v, b.v)}; }
inline Bytes64 operator&(Bytes64 a, Bytes64 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Bytes64 operator^(Bytes64 a, Bytes64 b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Bytes64 add_saturating(Bytes64 a, Bytes64 b) { return {_mm512_adds_epu8(a.v, b.v)}; }
inline Bytes64 shift_right_4(Bytes64 a) { return {_mm512_srli_epi16(a.v, 4)}; }
inline Bytes64 lookup16(const uint8_t* table, Bytes64 index) {
  const __m512i four =
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(four, index.v)};
}

// Adds up lanes, 64 bits wide.
struct ByteSum {
  __m512i v = _mm512_setzero_si512();

  void add(Bytes64 x) { v = _mm512_add_epi64(v, _mm512_sad_epu8(x.v, _mm512_setzero_si512())); }
  int64_t total() const { return _mm512_reduce_add_epi64(v); }
};

#endif

inline uint8_t reduce_min(Bytes64 v) {
  uint8_t lanes[kWord];
  v.store(lanes);
#if defined(TAUT_ISA_portable)
  uint8_t least = lanes[0];
  for (int i = 1; i < kWord; ++i) least = lanes[i] < least ? lanes[i] : least;
  return least;
#else
  const __m128i* four = reinterpret_cast<const __m128i*>(lanes);
  __m128i x = _mm_min_epu8(_mm_min_epu8(_mm_loadu_si128(four), _mm_loadu_si128(four + 1)),
                           _mm_min_epu8(_mm_loadu_si128(four + 2), _mm_loadu_si128(four + 3)));
  x = _mm_min_epu8(x, _mm_srli_epi16(x, 8));  // the low byte of each pair is the lesser one
  x = _mm_minpos_epu16(_mm_and_si128(x, _mm_set1_epi16(255)));
  return static_cast<uint8_t>(_mm_cvtsi128_si32(x));
#endif
}

#if defined(TAUT_ISA_portable)

inline void transpose_bytes(const uint64_t* words, uint8_t* planes) {
  for (int w = 0; w < kWord; ++w)
    for (int b = 0; b < 8; ++b) planes[kWord * b + w] = static_cast<uint8_t>(words[w] >> (8 * b));
}

#else

// 16 words at a time. With the bytes of 16 words numbered 8 w + b, a round of interleaving the
// first half with the second takes number i to i rotated left by one of its 7 bits: four rounds
// make 16 b + w.
inline void transpose_bytes(const uint64_t* words, uint8_t* planes) {
  for (int w = 0; w < kWord; w += 16) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; ++i)
      a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + w + 2 * i));
    for (int round = 0; round < 2; ++round) {
      for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 4]);
      }
      for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 4]);
        a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 4]);
      }
    }
    for (int i = 0; i < 8; ++i)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + kWord * i + w), a[i]);
  }
}

#endif

// `planes`: 512 bytes of scratch.
inline void transpose_bits(const uint64_t* words, uint8_t* planes, uint64_t* columns) {
  transpose_bytes(words, planes);
  for (int b = 0; b < 8; ++b) {
    Bytes64 plane = Bytes64::load(planes + kWord * b);
    for (int bit = 7; bit >= 0; --bit) {
      columns[8 * b + bit] = plane.top_bits();
      plane = plane + plane;
    }
  }
}

// ---- bits of comparisons

// Bit i is a[i] > b[i], of 64.
inline uint64_t greater_bits(const int32_t* a, const int32_t* b) {
  uint64_t bits = 0;
#if defined(TAUT_ISA_portable)
  for (int i = 0; i < kWord; ++i) bits |= static_cast<uint64_t>(a[i] > b[i]) << i;
#elif defined(TAUT_ISA_avx2)
  for (int i = 0; i < kWord; i += 8) {
    const __m256i greater =
        _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i)));
    const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(greater));
    bits |= static_cast<uint64_t>(static_cast<uint32_t>(mask)) << i;
  }
#else
  for (int i = 0; i < kWord; i += 16)
    bits |= static_cast<uint64_t>(
                _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i)))
            << i;
#endif
  return bits;
}

// Bit i is lane i of the mask.
inline uint64_t lanes_of(Mask mask) {
#if defined(TAUT_ISA_portable)
  uint64_t bits = 0;
  for (int i = 0; i < Vec::kWidth; ++i) bits |= static_cast<uint64_t>(mask.lane[i] != 0) << i;
  return bits;
#elif defined(TAUT_ISA_avx2)
  return static_cast<uint32_t>(_mm256_movemask_ps(mask.m));
#else
  return mask.m;
#endif
}

// kWidth whole numbers as floats.
inline Vec load_integers(const int32_t* p) {
#if defined(TAUT_ISA_portable)
  MaskLanes lanes;
  std::memcpy(&lanes, p, sizeof(lanes));
  return {__builtin_convertvector(lanes, FloatLanes)};
#elif defined(TAUT_ISA_avx2)
  return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
#else
  return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))};
#endif
}

}  // namespace TAUT_ISA
}  // namespace taut
