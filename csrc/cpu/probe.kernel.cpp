// How much arithmetic a core can do: independent chains of one operation each, in registers.
#include "cpu/probe.h"

#include "cpu/binary_counts.h"
#include "cpu/isa/bytes.h"
#include "cpu/isa/tiles.h"

namespace taut {
namespace TAUT_ISA {
namespace {

// Two units with a latency of up to ten; five where there are 16 registers.
#if defined(__AVX512F__)
constexpr int kChains = 20;
#else
constexpr int kChains = 10;
#endif
constexpr int64_t kSteps = 256;

// Where a loop's result goes, so that the loop is not left out.
template <class T>
inline void keep(const T& value) {
  volatile char sink;
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  sink = bytes[0];
  static_cast<void>(sink);
}

// chain = step(chain), kSteps times per unit. start(c) must differ, or chains would be merged.
template <class Start, class Step>
inline void run_chains(int64_t units, const Start& start, const Step& step) {
  decltype(start(0)) chain[kChains];
#pragma GCC unroll 32
  for (int c = 0; c < kChains; ++c) chain[c] = start(static_cast<int>(units) + c);
  for (int64_t i = 0; i < units * kSteps; ++i)
#pragma GCC unroll 32
    for (int c = 0; c < kChains; ++c) chain[c] = step(chain[c]);
#pragma GCC unroll 32
  for (int c = 0; c < kChains; ++c) keep(chain[c]);
}

#if defined(TAUT_ISA_amx)

// Four sums of 16 x 16 over 64 bytes of k: a product takes 16 cycles and its sum is back after 52.
template <class Multiply>
inline void run_tiles(int64_t units, const Multiply& multiply) {
  tile_configure(product_tiles(16, 64));
  alignas(64) uint8_t zeros[16 * 64] = {};
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  TILE_LOAD(4, zeros, 64);
  TILE_LOAD(5, zeros, 64);
  for (int64_t i = 0; i < units; ++i) multiply();
  TILE_STORE(0, zeros, 64);
  keep(zeros);
  tile_release();
}

#endif

}  // namespace

int64_t probe_fp32(int64_t units) {
  const Vec shrink = Vec::set(0.5f), more = Vec::set(1.0f);
  run_chains(
      units, [](int c) { return Vec::set(static_cast<float>(c)); },
      [&](Vec v) { return fma(v, shrink, more); });
  return 2 * Vec::kWidth * kChains * kSteps;
}

int64_t probe_bf16(int64_t units) {
#if defined(TAUT_ISA_amx)
  run_tiles(units, [] {
    TILE_DOT_BF16(0, 4, 5);
    TILE_DOT_BF16(1, 4, 5);
    TILE_DOT_BF16(2, 4, 5);
    TILE_DOT_BF16(3, 4, 5);
  });
  return 4 * 2 * 16 * 16 * 32;
#elif defined(__AVX512BF16__)
  const bf16 pair[2] = {{0x3f80}, {0x3f80}};
  const Pairs ones = Pairs::set(pair);
  run_chains(
      units, [](int c) { return Vec::set(static_cast<float>(c)); },
      [&](Vec v) { return dot(ones, ones, v); });
  return 4 * Vec::kWidth * kChains * kSteps;
#else
  return probe_fp32(units);  // products of bf16 are made in fp32
#endif
}

int64_t probe_int8(int64_t units) {
#if defined(TAUT_ISA_amx)
  run_tiles(units, [] {
    TILE_DOT_INT8(0, 4, 5);
    TILE_DOT_INT8(1, 4, 5);
    TILE_DOT_INT8(2, 4, 5);
    TILE_DOT_INT8(3, 4, 5);
  });
  return 4 * 2 * 16 * 16 * 64;
#else
  const Bytes x = Bytes::set(static_cast<uint8_t>(units));
  run_chains(units, set_ints, [&](Ints sums) {
#if defined(__AVX512VNNI__)
    return dot<8>(sums, x, x);
#else
    // Codes that do not depend on the sums would be multiplied once, before the loop.
    return dot<8>(sums, Bytes::load(&sums), x);
#endif
  });
  return 8 * Vec::kWidth * kChains * kSteps;
#endif
}

int64_t probe_popcount(int64_t units) {
  const Bytes64 word = Bytes64::set(static_cast<uint8_t>(units));
  const auto start = [](int c) { return Bytes64::set(static_cast<uint8_t>(c)); };
#if defined(TAUT_ISA_avx2) || defined(TAUT_ISA_avx512)
  // A lookup compares 4 bits and counts them.
  run_chains(units, start, [&](Bytes64 v) { return lookup16(&kCounts.of[15][9][0], v) + word; });
  return 2 * 4 * kWord * kChains * kSteps;
#else
  run_chains(units, start, [&](Bytes64 v) { return v + count_bits(v ^ word); });
  return 2 * 8 * kWord * kChains * kSteps;
#endif
}

}  // namespace TAUT_ISA
}  // namespace taut
