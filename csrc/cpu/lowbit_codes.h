// Reading a packed low-bit weight: codes of every width as bytes, and what a panel's channels need.
//
// A panel is blocks of 64 input features; the layout is in `pack_lowbit`. A row of a block is 64
// channels x 4 bytes. Half a block, 32 input features, is 8 quads; its codes lie in rows of its
// own: 8 of 8 bits, 4 of 4 bits, 2 of 2 bits, and for 3 bits one more row of top bits.
#pragma once
#include "cpu/isa/bytes.h"
#include "cpu/isa/ints.h"
#include "cpu/isa/reload.h"
#include "cpu/lowbit_gemm.h"
#include "cpu/transpose_words.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kRowBytes = 4 * kLowbitPanel;
constexpr int kQuads = kLowbitUnit / 4;

// The codes of one unit of input features of a panel, from some channel on.
struct Unit {
  const uint8_t* low;
  const uint8_t* top;  // 3 bits only
};

template <int Bits>
constexpr int64_t kBlockBytes = 2 * Bits * kRowBytes;
template <int Bits>
constexpr int64_t kHalfRows = Bits == 3 ? 2 : Bits;

template <int Bits>
inline Unit unit_of(const uint8_t* panel, int64_t unit, int64_t channel) {
  const uint8_t* block = panel + unit / 2 * kBlockBytes<Bits> + 4 * channel;
  const int64_t half = unit % 2;
  return {block + half * kHalfRows<Bits> * kRowBytes, block + (4 + half) * kRowBytes};
}

// Quad `quad` of the unit: the codes of four input features of Vec::kWidth channels.
template <int Bits>
inline Bytes codes_of(Unit unit, int quad, int64_t channel) {
  const uint8_t* low = unit.low + 4 * channel;
  if constexpr (Bits == 8) {
    return Bytes::load(low + quad * kRowBytes);
  } else if constexpr (Bits == 4) {
    const Bytes two = Bytes::load(low + quad / 2 * kRowBytes);
    return (quad % 2 ? two >> 4 : two) & Bytes::set(15);
  } else {
    const Bytes four = Bytes::load(low + quad / 4 * kRowBytes);
    const Bytes code = four >> (2 * (quad % 4));
    if constexpr (Bits == 2) return code & Bytes::set(3);
    // Loaded anew for every quad: kept in registers, top bits would push the sums out of theirs.
    reload_memory();
    const Bytes top = Bytes::load(unit.top + 4 * channel);
    return select(Bytes::set(4), quad < 2 ? top << (2 - quad) : top >> (quad - 2), code) &
           Bytes::set(7);
  }
}

// What the channels of a panel need behind their sums, a row of 64 per group; channels that the
// weight does not have hold zeros.
struct PanelConstants {
  const float* bias;  // one row
  const float* scale;
  const int32_t* zero;  // the whole part of the zero point
  bool common_zero;     // one for all: the sums of x are times it already
  float* fraction;      // the rest of it; null where it is 0 throughout
  float* offset;        // x_zero_point * (sum of codes - features * zero point); null without
};

inline float element_at(const void* data, Element type, int64_t i) {
  switch (type) {
    case Element::bf16: return to_float(static_cast<const bf16*>(data)[i]);
    case Element::f16: return to_float(static_cast<const f16*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

// In so much memory as p.constants_size() says.
inline PanelConstants prepare_constants(const LowbitParams& p, int64_t panel, float* memory) {
  const int64_t first = panel * kLowbitPanel, left = p.out_features - first;
  const int64_t channels = left < kLowbitPanel ? left : kLowbitPanel;
  const int64_t size = p.groups * kLowbitPanel;
  float* bias = memory;
  float* scale = bias + kLowbitPanel;
  int32_t* zero = reinterpret_cast<int32_t*>(scale + size);
  float* fraction = scale + 2 * size;
  float* offset = scale + 3 * size;
  for (int64_t n = 0; n < kLowbitPanel; ++n)
    bias[n] = n < channels && p.bias ? element_at(p.bias, p.bias_type, first + n) : 0.0f;
  // (channels, groups) to a row per group.
  const auto by_groups = [&](const float* from, float* to) {
    if (channels < kLowbitPanel) std::memset(to, 0, static_cast<size_t>(size) * sizeof(float));
    transpose_words(from + first * p.groups, p.groups * 4, to, kLowbitPanel * 4, channels,
                    p.groups);
  };
  by_groups(p.scale, scale);
  if (!p.zero_point) {
    for (int64_t i = 0; i < size; ++i) zero[i] = p.common_zero();
    return {bias, scale, zero, true, nullptr, p.x_zero_point != 0.0f ? offset : nullptr};
  }
  by_groups(p.zero_point, fraction);
  Vec fractions = Vec::zero();  // summed: a maximum would lose NaN
  for (int64_t i = 0; i < size; i += Vec::kWidth) {
    const Vec point = Vec::load(fraction + i), near = round(point);
    const Vec floor = select(point < near, near - Vec::set(1.0f), near), rest = point - floor;
    store_ints(to_ints(floor), zero + i);
    rest.store(fraction + i);
    fractions = fractions + rest;
  }
  const bool whole = reduce_add(fractions) == 0.0f;
  return {bias,
          scale,
          zero,
          false,
          whole ? nullptr : fraction,
          p.x_zero_point != 0.0f ? offset : nullptr};
}

}  // namespace TAUT_ISA
}  // namespace taut
