// The keys of a sequence and one head, a block of 64 at a time, and what queries count against
// them.
#pragma once
#include "cpu/binary_attention.h"
#include "cpu/binary_counts.h"

namespace taut {
namespace TAUT_ISA {
namespace {

constexpr uint8_t kNoKey = 255;  // the distance of a key that is not there

// The words of tokens [first, first + 64) of a head; 0 from `tokens` on.
inline void gather_words(const BitInput& in, int64_t token, int64_t head, int64_t first,
                         int64_t tokens, uint64_t* words) {
  const int64_t n = tokens - first < kWord ? tokens - first : kWord;
  const uint64_t* from = in.at(token + first, head);
  for (int64_t i = 0; i < n; ++i) words[i] = from[i * in.token_stride];
  for (int64_t i = n; i < kWord; ++i) words[i] = 0;
}

// Fills kKeyBytes per block.
inline void prepare_all_keys(const BitInput& k, int64_t token, int64_t head, int64_t keys,
                             uint8_t* blocks) {
  for (int64_t first = 0; first < keys; first += kWord) {
    uint64_t words[kWord];
    gather_words(k, token, head, first, keys, words);
    prepare_keys(words, blocks + first / kWord * kKeyBytes);
  }
}

// Bits in which each query differs from each key, a byte each: out[r][key], kNoKey behind the last
// key of its block. Returns the least of each query.
template <int kRows>
inline void all_distances(const Query* queries, const uint8_t* blocks, int64_t keys, uint8_t* out,
                          int64_t stride, uint8_t (&least)[kRows]) {
  Bytes64 smallest[kRows];
  for (int r = 0; r < kRows; ++r) smallest[r] = Bytes64::set(kNoKey);
  for (int64_t first = 0; first < keys; first += kWord) {
    Bytes64 counts[kRows];
    distances<kRows>(queries, blocks + first / kWord * kKeyBytes, counts);
    for (int r = 0; r < kRows; ++r) {
      uint8_t* to = out + r * stride + first;
      counts[r].store(to);
      if (keys - first < kWord) {
        std::memset(to + (keys - first), kNoKey, static_cast<size_t>(kWord - (keys - first)));
        counts[r] = Bytes64::load(to);
      }
      smallest[r] = min(smallest[r], counts[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) least[r] = reduce_min(smallest[r]);
}

// The sum of E[distance - least] over the keys of `blocks` blocks.
#if defined(TAUT_ISA_portable)

inline int64_t sum_exponentials(const ExponentialTable& table, const uint8_t* distance,
                                int64_t blocks, uint8_t least) {
  int64_t sum = 0;
  for (int64_t i = 0; i < blocks * kWord; ++i)
    if (distance[i] != kNoKey) sum += table.whole[distance[i] - least];
  return sum;
}

#elif defined(TAUT_ISA_avx2) || defined(TAUT_ISA_avx512)

// A shuffle looks up 16 entries and gives 0 where its index has bit 7 set: with the part of the
// table that is meant taken away by xor, a saturating addition sets that bit for all others.
inline int64_t sum_exponentials(const ExponentialTable& table, const uint8_t* distance,
                                int64_t blocks, uint8_t least) {
  const Bytes64 lowest = Bytes64::set(least), guard = Bytes64::set(0x70);
  ByteSum sums[3];
  for (int64_t block = 0; block < blocks; ++block) {
    const Bytes64 index = Bytes64::load(distance + block * kWord) - lowest;
    Bytes64 found[3] = {Bytes64::set(0), Bytes64::set(0), Bytes64::set(0)};
    for (int part = 0; part <= 4; ++part) {
      const Bytes64 here =
          add_saturating(index ^ Bytes64::set(static_cast<uint8_t>(16 * part)), guard);
      for (int i = 0; i < 3; ++i) found[i] = found[i] + lookup16(table.byte[i] + 16 * part, here);
    }
    for (int i = 0; i < 3; ++i) sums[i].add(found[i]);
  }
  return sums[0].total() + (sums[1].total() << 8) + (sums[2].total() << 16);
}

#else

inline int64_t sum_exponentials(const ExponentialTable& table, const uint8_t* distance,
                                int64_t blocks, uint8_t least) {
  __m512i low[3], high[3];
  for (int i = 0; i < 3; ++i) {
    low[i] = _mm512_loadu_si512(table.byte[i]);
    high[i] = _mm512_loadu_si512(table.byte[i] + 64);
  }
  ByteSum sums[3];
  for (int64_t block = 0; block < blocks; ++block) {
    const __m512i d = _mm512_loadu_si512(distance + block * kWord);
    const __mmask64 keys = _mm512_cmple_epu8_mask(d, _mm512_set1_epi8(kWord));
    const __m512i index = _mm512_sub_epi8(d, _mm512_set1_epi8(static_cast<char>(least)));
    for (int i = 0; i < 3; ++i)
      sums[i].add({_mm512_maskz_permutex2var_epi8(keys, low[i], index, high[i])});
  }
  return sums[0].total() + (sums[1].total() << 8) + (sums[2].total() << 16);
}

#endif

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
