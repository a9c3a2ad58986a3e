// Counting bits: what products of packed signs come down to. One word of a row, an Operand {p, m},
// against one word c of each of 64 columns counts the bits of (p ^ c) & m:
//   signs +-1:   m all ones;  product = 64 - 2 count
//   signs and 0: m where not 0;  product = bits of m - 2 count
//   bits 0, 1:   p = 0, m the bits;  product of the bits with c as 0 and 1 = count
//
// There are two ways. With a bit count instruction, or none at all, columns stay words. With byte
// shuffles, a table of 16 entries says for 4 bits of a row what each value of 4 bits of a column
// counts: columns are then planes of 4 bits, a byte for each of the 64 columns.
#pragma once
#include "cpu/isa/bytes64.h"

namespace taut {
namespace TAUT_ISA {
namespace {

constexpr int kCountRows = 4;  // rows that share a load of the columns

#if defined(TAUT_ISA_avx2) || defined(TAUT_ISA_avx512)

constexpr int64_t kColumnBytes = 1024;  // per word of 64 columns: 16 planes of 64 bytes

struct CountTable {
  uint8_t of[16][16][16];  // [m][p][c]
};
constexpr CountTable make_count_table() {
  CountTable table{};
  for (int m = 0; m < 16; ++m)
    for (int p = 0; p < 16; ++p)
      for (int c = 0; c < 16; ++c) {
        const int x = (p ^ c) & m;
        table.of[m][p][c] = static_cast<uint8_t>((x & 1) + (x >> 1 & 1) + (x >> 2 & 1) + (x >> 3));
      }
  return table;
}
alignas(64) constexpr CountTable kCounts = make_count_table();

// The offset in kCounts of the table of each 4 bits.
struct alignas(32) Operand {
  uint16_t offset[16];

  static Operand of(uint64_t p, uint64_t m) {
    Operand operand;
    _mm256_store_si256(reinterpret_cast<__m256i*>(operand.offset),
                       _mm256_or_si256(nibbles(p, _mm256_set1_epi32(0x00010010), 0x00f0),
                                       nibbles(m, _mm256_set1_epi32(0x00100100), 0x0f00)));
    return operand;
  }

 private:
  // Lane n: 4 bits n of the word, moved under `mask` by the factors of even and odd lanes.
  static __m256i nibbles(uint64_t word, __m256i factors, int mask) {
    const __m256i order = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,
                                           4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
    const __m256i lanes =
        _mm256_shuffle_epi8(_mm256_set1_epi64x(static_cast<int64_t>(word)), order);
    return _mm256_and_si256(_mm256_mullo_epi16(lanes, factors),
                            _mm256_set1_epi16(static_cast<int16_t>(mask)));
  }
};

// Returns where the columns are to be read from: `planes`, kColumnBytes per word.
inline const void* prepare_columns(const uint64_t* columns, int64_t words, uint8_t* planes) {
  const Bytes64 low = Bytes64::set(15);
  for (int64_t w = 0; w < words; ++w) {
    uint8_t bytes[8 * kWord];
    transpose_bytes(columns + w * kWord, bytes);
    for (int b = 0; b < 8; ++b) {
      const Bytes64 plane = Bytes64::load(bytes + b * kWord);
      uint8_t* to = planes + w * kColumnBytes + 2 * b * kWord;
      (plane & low).store(to);
      (shift_right_4(plane) & low).store(to + kWord);
    }
  }
  return planes;
}

// counts[r] += the counts of `words` words; at most 3, for a lane to hold them.
template <int kRows>
inline void add_counts(const Operand* rows, int64_t stride, const uint8_t* planes, int64_t words,
                       Bytes64 (&counts)[kRows]) {
  const uint8_t* tables = &kCounts.of[0][0][0];
  for (int64_t w = 0; w < words; ++w)
    for (int n = 0; n < 16; ++n) {
      const Bytes64 plane = Bytes64::load(planes + w * kColumnBytes + n * kWord);
      for (int r = 0; r < kRows; ++r)
        counts[r] = counts[r] + lookup16(tables + rows[r * stride + w].offset[n], plane);
    }
}

template <int kRows>
inline void count_rows(const Operand* rows, int64_t stride, const void* columns, int64_t words,
                       int64_t, int32_t (*sums)[kWord]) {
  constexpr int64_t kMostWords = 1023;  // 64 * 1023 < 2^16
  const uint8_t* planes = static_cast<const uint8_t*>(columns);
  for (int r = 0; r < kRows; ++r) std::memset(sums[r], 0, sizeof(sums[r]));
  for (int64_t begin = 0; begin < words; begin += kMostWords) {
    const int64_t end = begin + kMostWords < words ? begin + kMostWords : words;
    alignas(64) uint16_t wide[kRows][kWord] = {};
    for (int64_t w = begin; w < end; w += 3) {
      Bytes64 counts[kRows];
      for (int r = 0; r < kRows; ++r) counts[r] = Bytes64::set(0);
      add_counts<kRows>(rows + w, stride, planes + w * kColumnBytes, end - w < 3 ? end - w : 3,
                        counts);
      for (int r = 0; r < kRows; ++r) counts[r].add_to(wide[r]);
    }
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kWord; ++c) sums[r][c] += wide[r][c];
  }
}

// ---- one word against the 64 keys of a block: counts as bytes

constexpr int64_t kKeyBytes = kColumnBytes;
using Query = Operand;

inline void make_query(uint64_t word, Query* query) { *query = Operand::of(word, ~uint64_t{0}); }
inline void prepare_keys(const uint64_t* words, uint8_t* planes) {
  prepare_columns(words, 1, planes);
}
template <int kRows>
inline void distances(const Query* queries, const uint8_t* planes, Bytes64 (&counts)[kRows]) {
  for (int r = 0; r < kRows; ++r) counts[r] = Bytes64::set(0);
  add_counts<kRows>(queries, 1, planes, 1, counts);
}

#else

constexpr int64_t kColumnBytes = 0;  // columns are read where they lie

struct Operand {
  uint64_t p, m;

  static Operand of(uint64_t p, uint64_t m) { return {p, m}; }
};

inline const void* prepare_columns(const uint64_t* columns, int64_t, uint8_t*) { return columns; }

#if defined(TAUT_ISA_portable)

// x becomes the number of bits of each of its bytes; T: an unsigned integer or lanes of them,
// `ones` 0x01 in every byte.
template <class T>
inline void count_bits_of_bytes(T& x, const T& ones) {
  x -= (x >> 1) & (ones * 0x55);
  x = (x & (ones * 0x33)) + ((x >> 2) & (ones * 0x33));
  x = (x + (x >> 4)) & (ones * 0x0f);
}

template <int kRows>
inline void count_rows(const Operand* rows, int64_t stride, const void* columns, int64_t words,
                       int64_t, int32_t (*sums)[kWord]) {
  constexpr uint64_t kOnes = 0x0101010101010101u, kPairs = 0x00ff00ff00ff00ffu;
  const uint64_t* from = static_cast<const uint64_t*>(columns);
  for (int r = 0; r < kRows; ++r) {
    std::memset(sums[r], 0, sizeof(sums[r]));
    for (int64_t begin = 0; begin < words; begin += 31) {  // 31 * 8 < 2^8
      const int64_t end = begin + 31 < words ? begin + 31 : words;
      uint64_t bytes[kWord] = {};
      for (int64_t w = begin; w < end; ++w) {
        const Operand row = rows[r * stride + w];
        for (int c = 0; c < kWord; ++c) {
          uint64_t bits = (row.p ^ from[w * kWord + c]) & row.m;
          count_bits_of_bytes(bits, kOnes);
          bytes[c] += bits;
        }
      }
      for (int c = 0; c < kWord; ++c) {
        const uint64_t pairs = (bytes[c] & kPairs) + ((bytes[c] >> 8) & kPairs);
        sums[r][c] += static_cast<int32_t>(pairs * 0x0001000100010001u >> 48);
      }
    }
  }
}

inline Bytes64 count_bits(Bytes64 x) {
  count_bits_of_bytes(x.v, Bytes64::set(1).v);
  return x;
}
inline Bytes64 operator^(Bytes64 a, Bytes64 b) { return {a.v ^ b.v}; }

#else

template <int kRows>
inline void count_rows(const Operand* rows, int64_t stride, const void* columns, int64_t words,
                       int64_t unmasked, int32_t (*sums)[kWord]) {
  constexpr int kVecs = 4;  // 16 sums of 32 registers: half of the columns at a time
  for (int c = 0; c < kWord; c += 8 * kVecs) {
    const uint64_t* from = static_cast<const uint64_t*>(columns) + c;
    __m512i counts[kRows][kVecs];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVecs; ++v) counts[r][v] = _mm512_setzero_si512();
    const auto add = [&](int64_t w, const auto& unlike) {
      __m512i column[kVecs];
      for (int v = 0; v < kVecs; ++v) column[v] = _mm512_loadu_si512(from + w * kWord + 8 * v);
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVecs; ++v) {
          const __m512i bits = unlike(column[v], rows[r * stride + w]);
          counts[r][v] = _mm512_add_epi64(counts[r][v], _mm512_popcnt_epi64(bits));
        }
    };
    const auto broadcast = [](uint64_t word) {
      return _mm512_set1_epi64(static_cast<int64_t>(word));
    };
    for (int64_t w = 0; w < unmasked; ++w)
      add(w, [&](__m512i column, const Operand& row) {
        return _mm512_xor_si512(column, broadcast(row.p));
      });
    for (int64_t w = unmasked; w < words; ++w)
      add(w, [&](__m512i column, const Operand& row) {
        constexpr int kXorThenAnd = 0x28;  // (p ^ column) & m
        return _mm512_ternarylogic_epi64(column, broadcast(row.p), broadcast(row.m), kXorThenAnd);
      });
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVecs; ++v)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums[r] + c + 8 * v),
                            _mm512_cvtepi64_epi32(counts[r][v]));
  }
}

inline Bytes64 count_bits(Bytes64 x) { return {_mm512_popcnt_epi8(x.v)}; }

#endif

// ---- one word against the 64 keys of a block: counts as bytes. A block is 8 planes, a byte of
// each key.

constexpr int64_t kKeyBytes = 512;

struct Query {
  uint8_t bytes[8][kWord];  // byte b of the word in all lanes
};
inline void make_query(uint64_t word, Query* query) {
  for (int b = 0; b < 8; ++b)
    Bytes64::set(static_cast<uint8_t>(word >> (8 * b))).store(query->bytes[b]);
}
inline void prepare_keys(const uint64_t* words, uint8_t* planes) { transpose_bytes(words, planes); }
template <int kRows>
inline void distances(const Query* queries, const uint8_t* planes, Bytes64 (&counts)[kRows]) {
  for (int r = 0; r < kRows; ++r) counts[r] = Bytes64::set(0);
  for (int b = 0; b < 8; ++b) {
    const Bytes64 plane = Bytes64::load(planes + b * kWord);
    for (int r = 0; r < kRows; ++r)
      counts[r] = counts[r] + count_bits(plane ^ Bytes64::load(queries[r].bytes[b]));
  }
}

#endif

// sums[r] = the counts of row r, `stride` operands after the one before, over `words` words, of
// which the first `unmasked` have all bits of m.
inline void count(const Operand* rows, int64_t stride, int64_t n, const void* columns,
                  int64_t words, int64_t unmasked, int32_t (*sums)[kWord]) {
  int64_t r = 0;
  for (; r + kCountRows <= n; r += kCountRows)
    count_rows<kCountRows>(rows + r * stride, stride, columns, words, unmasked, sums + r);
  for (; r < n; ++r) count_rows<1>(rows + r * stride, stride, columns, words, unmasked, sums + r);
}

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
