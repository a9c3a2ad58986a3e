// Vec for any machine, in the compiler's vector extension: 4 lanes.
#pragma once
#include <cstring>

#include "cpu/isa/half.h"

namespace taut {
namespace TAUT_ISA {

typedef float FloatLanes __attribute__((vector_size(16)));
typedef uint32_t BitLanes __attribute__((vector_size(16)));
typedef int32_t MaskLanes __attribute__((vector_size(16)));
typedef uint16_t HalfLanes __attribute__((vector_size(8)));

struct Mask {
  MaskLanes lane;
};

struct Vec {
  static constexpr int kWidth = 4;
  static constexpr float kLowestPower = -127.0f;  // scale(x, kLowestPower) is 0
  FloatLanes lane;

  static Vec set(float x) { return {FloatLanes{} + x}; }
  static Vec zero() { return {FloatLanes{}}; }
  static Vec load(const float* p) {
    Vec v;
    std::memcpy(&v.lane, p, sizeof(v.lane));
    return v;
  }
  static Vec load(const bf16* p) {
    HalfLanes raw;
    std::memcpy(&raw, p, sizeof(raw));
    return {(FloatLanes)(__builtin_convertvector(raw, BitLanes) << 16)};
  }
  // The product moves the exponent from one bias to the other and is exact, for subnormal numbers
  // too; what is not finite gets the largest exponent.
  static Vec load(const f16* p) {
    HalfLanes raw;
    std::memcpy(&raw, p, sizeof(raw));
    const BitLanes half = __builtin_convertvector(raw, BitLanes);
    const BitLanes magnitude = (half & 0x7fffu) << 13;
    const BitLanes moved = (BitLanes)((FloatLanes)magnitude * 0x1p112f);
    const BitLanes top = (BitLanes)(magnitude >= 0x7c00u << 13) & 0x7f800000u;
    return {(FloatLanes)(moved | top | (half & 0x8000u) << 16)};
  }
  template <class T>
  static Vec load(const T* p, int n) {
    Vec v = zero();
    for (int i = 0; i < n; ++i) v.lane[i] = to_float(p[i]);
    return v;
  }
  void store(float* p) const { std::memcpy(p, &lane, sizeof(lane)); }
  template <class T>
  void store(T* p) const {
    store(p, kWidth);
  }
  template <class T>
  void store(T* p, int n) const {
    for (int i = 0; i < n; ++i) from_float(lane[i], p + i);
  }
};

inline Vec operator+(Vec a, Vec b) { return {a.lane + b.lane}; }
inline Vec operator-(Vec a, Vec b) { return {a.lane - b.lane}; }
inline Vec operator*(Vec a, Vec b) { return {a.lane * b.lane}; }
inline Vec operator/(Vec a, Vec b) { return {a.lane / b.lane}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec fnma(Vec a, Vec b, Vec c) { return c - a * b; }
inline Vec max(Vec a, Vec b) { return {a.lane > b.lane ? a.lane : b.lane}; }
inline Vec min(Vec a, Vec b) { return {a.lane < b.lane ? a.lane : b.lane}; }
inline Vec abs(Vec a) { return {(FloatLanes)((BitLanes)a.lane & 0x7fffffffu)}; }
inline Vec sqrt(Vec a) {
  for (int i = 0; i < Vec::kWidth; ++i) a.lane[i] = __builtin_sqrtf(a.lane[i]);
  return a;
}
// Adding and taking away 1.5 * 2^23 rounds to nearest even for |x| < 2^22.
inline Vec round(Vec a) { return {(a.lane + 12582912.0f) - 12582912.0f}; }
inline Vec pow2(Vec a) {
  return {(FloatLanes)((__builtin_convertvector(a.lane, MaskLanes) + 127) << 23)};
}
struct Exponent {
  Vec fraction, power;
};
inline Exponent split_exponent(Vec a) {
  const Vec bounded = max(Vec::set(Vec::kLowestPower), a);
  const Vec nearest = round(bounded);
  const Vec whole = {bounded.lane < nearest.lane ? nearest.lane - 1.0f : nearest.lane};
  return {bounded - whole, whole};
}
inline Vec scale(Vec a, Vec power) { return a * pow2(power); }
inline Mask operator<(Vec a, Vec b) { return {a.lane < b.lane}; }
inline Vec select(Mask m, Vec a, Vec b) { return {m.lane ? a.lane : b.lane}; }

struct Pairs {
  Vec first, second;

  static Pairs load(const bf16* p) {
    BitLanes raw;
    std::memcpy(&raw, p, sizeof(raw));
    return {{(FloatLanes)(raw << 16)}, {(FloatLanes)(raw & 0xffff0000u)}};
  }
  static Pairs set(const bf16* p) { return {Vec::set(to_float(p[0])), Vec::set(to_float(p[1]))}; }
  void store(bf16* p) const {
    for (int i = 0; i < Vec::kWidth; ++i) {
      from_float(first.lane[i], p + 2 * i);
      from_float(second.lane[i], p + 2 * i + 1);
    }
  }
  Vec even() const { return first; }
  Vec odd() const { return second; }
};

inline Pairs pairs_of(Vec even, Vec odd) {
  bf16 rounded[2 * Vec::kWidth];
  Pairs{even, odd}.store(rounded);
  return Pairs::load(rounded);
}

inline float reduce_add(Vec a) { return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]); }
inline float reduce_max(Vec a) {
  float best = a.lane[0];
  for (int i = 1; i < Vec::kWidth; ++i) best = a.lane[i] > best ? a.lane[i] : best;
  return best;
}

}  // namespace TAUT_ISA
}  // namespace taut
