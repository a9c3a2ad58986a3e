// Vec for any machine: plain loops that the compiler maps to whatever the baseline has.
#pragma once
#include <cmath>

#include "cpu/isa/half.h"

namespace taut {
namespace TAUT_ISA {

struct Mask {
  bool lane[8];
};

struct Vec {
  static constexpr int kWidth = 8;
  float lane[kWidth];

  static Vec set(float x) {
    Vec v;
    for (float& l : v.lane) l = x;
    return v;
  }
  static Vec zero() { return set(0.0f); }
  template <class T>
  static Vec load(const T* p) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v.lane[i] = to_float(p[i]);
    return v;
  }
  template <class T>
  static Vec load(const T* p, int n) {
    Vec v = zero();
    for (int i = 0; i < n; ++i) v.lane[i] = to_float(p[i]);
    return v;
  }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < kWidth; ++i) from_float(lane[i], p + i);
  }
  template <class T>
  void store(T* p, int n) const {
    for (int i = 0; i < n; ++i) from_float(lane[i], p + i);
  }
};

template <class F>
inline Vec map(Vec a, F f) {
  for (float& l : a.lane) l = f(l);
  return a;
}
template <class F>
inline Vec map(Vec a, Vec b, F f) {
  for (int i = 0; i < Vec::kWidth; ++i) a.lane[i] = f(a.lane[i], b.lane[i]);
  return a;
}

inline Vec operator+(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x + y; }); }
inline Vec operator-(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x - y; }); }
inline Vec operator*(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x * y; }); }
inline Vec operator/(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x / y; }); }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec fnma(Vec a, Vec b, Vec c) { return c - a * b; }
inline Vec max(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x > y ? x : y; }); }
inline Vec min(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x < y ? x : y; }); }
inline Vec abs(Vec a) { return map(a, [](float x) { return as_float(as_bits(x) & 0x7fffffffu); }); }
inline Vec sqrt(Vec a) { return map(a, [](float x) { return std::sqrt(x); }); }
// Adding and taking away 1.5 * 2^23 rounds to nearest even for |x| < 2^22.
inline Vec round(Vec a) { return map(a, [](float x) { return (x + 12582912.0f) - 12582912.0f; }); }
inline Vec pow2(Vec a) {
  return map(a, [](float x) { return as_float(static_cast<uint32_t>(static_cast<int>(x) + 127) << 23); });
}
inline Vec scale(Vec a, Vec power) { return a * pow2(power); }
inline Mask operator<(Vec a, Vec b) {
  Mask m;
  for (int i = 0; i < Vec::kWidth; ++i) m.lane[i] = a.lane[i] < b.lane[i];
  return m;
}
inline Vec select(Mask m, Vec a, Vec b) {
  for (int i = 0; i < Vec::kWidth; ++i) a.lane[i] = m.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

struct Pairs {
  Vec first, second;

  static Pairs load(const bf16* p) {
    Pairs pairs;
    for (int i = 0; i < Vec::kWidth; ++i) {
      pairs.first.lane[i] = to_float(p[2 * i]);
      pairs.second.lane[i] = to_float(p[2 * i + 1]);
    }
    return pairs;
  }
  static Pairs set(const bf16* p) { return {Vec::set(to_float(p[0])), Vec::set(to_float(p[1]))}; }
  Vec even() const { return first; }
  Vec odd() const { return second; }
};

inline float reduce_add(Vec a) {
  float half[4];
  for (int i = 0; i < 4; ++i) half[i] = a.lane[i] + a.lane[i + 4];
  return (half[0] + half[2]) + (half[1] + half[3]);
}
inline float reduce_max(Vec a) {
  float best = a.lane[0];
  for (float l : a.lane) best = l > best ? l : best;
  return best;
}

}  // namespace TAUT_ISA
}  // namespace taut
