// Elementary functions over Vec. Polynomials are least-squares fits with minimax reweighting,
// made for this file; the stated errors are against 50-digit arithmetic.
#pragma once
#if defined(__AVX512F__)
#include "cpu/isa/gelu_table.h"
#endif

namespace taut {
namespace TAUT_ISA {

// 2^x for x <= 127, by a polynomial of degree 3, 4 or 5 over [0, 1]: relative error 7.5e-5, 2.6e-6
// or 1e-7, plus rounding; 0 far below -126. NaN stays NaN.
template <int kDegree = 5>
inline Vec exp2(Vec x) {
  static constexpr float kByDegree[3][6] = {
      {0.07802452147f, 0.2260671705f, 0.6958335042f, 0.9999251962f},
      {0.01353416778f, 0.05201146379f, 0.2414427549f, 0.6930038333f, 1.000002623f},
      {0.001877576695f, 0.008989340626f, 0.05582631752f, 0.2401536107f, 0.6931530833f,
       0.9999999404f},
  };
  constexpr const float (&kFactors)[6] = kByDegree[kDegree - 3];
  const Exponent exponent = split_exponent(x);
  Vec p = Vec::set(kFactors[0]);
  for (int i = 1; i <= kDegree; ++i) p = fma(p, exponent.fraction, Vec::set(kFactors[i]));
  return scale(p, exponent.power);
}

// e^x for x <= 88; 0 far below -87.
inline Vec exp(Vec x) {
  const Vec log2e = Vec::set(1.44269504f);
  x = max(Vec::set(0.6931f * Vec::kLowestPower), x);
  const Vec whole = round(x * log2e);
  // The low part of log2(e) keeps the fraction exact to fp32 where x * log2(e) is large.
  const Vec f = fma(x, Vec::set(1.925963033e-8f), fma(x, log2e, Vec::zero() - whole));
  Vec p = Vec::set(0.001327646782f);
  p = fma(p, f, Vec::set(0.009675541301f));
  p = fma(p, f, Vec::set(0.05550713286f));
  p = fma(p, f, Vec::set(0.2402211972f));
  p = fma(p, f, Vec::set(0.6931469671f));
  p = fma(p, f, Vec::set(1.000000072f));
  return scale(p, whole);
}

inline Vec sigmoid(Vec x) {
  const Vec one = Vec::set(1.0f);
  const Vec bounded = max(min(x, Vec::set(88.0f)), Vec::set(-87.0f));
  return one / (one + exp(Vec::zero() - bounded));
}

// erfc(a / sqrt(2)) for a >= 0, as 2^-R(a). Absolute error of a * result 1e-7 in fp32; the tail
// keeps its relative accuracy, which 1 - erf would lose.
inline Vec erfc_scaled(Vec a) {
  Vec r = Vec::set(1.90206451e-06f);
  r = fma(r, a, Vec::set(-2.80569247e-05f));
  r = fma(r, a, Vec::set(0.000131473133f));
  r = fma(r, a, Vec::set(0.000272075997f));
  r = fma(r, a, Vec::set(-0.00724542165f));
  r = fma(r, a, Vec::set(0.0526276112f));
  r = fma(r, a, Vec::set(0.459162143f));
  r = fma(r, a, Vec::set(1.15111105f));
  return exp2(Vec::zero() - r * a);
}

// lowest <= x <= highest; NaN stays NaN, as max and min give their second argument then.
inline Vec clamp(Vec x, float lowest, float highest) {
  return max(Vec::set(lowest), min(Vec::set(highest), x));
}

// sigmoid(x) and its derivative e / (1 + e)^2, e = exp(-|x|), which 1 - sigmoid(x) would lose to
// cancellation.
struct Logistic {
  Vec value, derivative;

  explicit Logistic(Vec x) {
    const Vec e = exp(Vec::zero() - abs(x));
    const Vec upper = Vec::set(1.0f) / (Vec::set(1.0f) + e);
    const Vec lower = e * upper;
    value = select(x < Vec::zero(), lower, upper);
    derivative = lower * upper;
  }
};

// Activations, named as in transformers. `gelu` is the erf form. Arguments are clamped to where the
// function has reached its limit, so that no tiny factor meets a huge one. NaN stays NaN.
struct Identity {
  static Vec apply(Vec x) { return x; }
  static Vec derivative(Vec) { return Vec::set(1.0f); }
};
struct Relu {
  static Vec apply(Vec x) { return max(Vec::zero(), x); }
  static Vec derivative(Vec x) { return select(Vec::zero() < x, Vec::set(1.0f), Vec::zero()); }
};
struct Gelu {
  static Vec apply(Vec x) {
    const Vec a = min(Vec::set(16.0f), abs(x));
    return max(x, Vec::zero()) - Vec::set(0.5f) * (a * erfc_scaled(a));
  }
  static Vec derivative(Vec x) {
    x = clamp(x, -16.0f, 16.0f);
    const Vec tail = Vec::set(0.5f) * erfc_scaled(abs(x));
    const Vec cdf = select(x < Vec::zero(), tail, Vec::set(1.0f) - tail);
    const Vec density = Vec::set(0.398942280f) * exp(Vec::set(-0.5f) * x * x);
    return fma(x, density, cdf);
  }
};
#if defined(__AVX512F__)
// Gelu for results that are rounded to bf16: relative error below 2.9e-4 for x > -4 and 3e-3 for
// x > -6, where half a unit of bf16 is 2e-3 to 4e-3; below -6, absolute error below 2e-11.
struct GeluForBf16 {
  static Vec apply(Vec x) {
    const Vec a = min(Vec::set(kMostTail), abs(x));  // in this order NaN stays NaN
    const auto places = places_of(a, Vec::set(4.0f));
    Vec tail = Table32(kTail[kTailDegree])[places];
    for (int i = kTailDegree - 1; i >= 0; --i) tail = fma(tail, a, Table32(kTail[i])[places]);
    return max(x, Vec::zero()) - tail;
  }
};
#else
// The same, with a relative error below 2.5e-4 for x > -4 and 6e-4 for x > -6, and an absolute
// error below 4e-12 below -6. The tail 0.5 erfc(a / sqrt(2)) is 2^-(1 + a r(a)).
struct GeluForBf16 {
  static Vec apply(Vec x) {
    const Vec a = min(Vec::set(9.0f), abs(x));
    Vec r = Vec::set(-1.50657189e-05f);
    r = fma(r, a, Vec::set(0.000472508296f));
    r = fma(r, a, Vec::set(-0.00630569962f));
    r = fma(r, a, Vec::set(0.0486363212f));
    r = fma(r, a, Vec::set(0.464365633f));
    r = fma(r, a, Vec::set(1.14906466f));
    return fnma(a, exp2<3>(fnma(r, a, Vec::set(-1.0f))), max(x, Vec::zero()));
  }
};
#endif
struct GeluTanh {  // x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
  static Vec twice_u(Vec x) {
    return x * fma(x * x, Vec::set(0.0713548162726f), Vec::set(1.59576912160573f));
  }
  static Vec apply(Vec x) {
    x = max(Vec::set(-12.0f), x);
    return x * sigmoid(twice_u(x));
  }
  static Vec derivative(Vec x) {
    x = clamp(x, -12.0f, 12.0f);
    const Logistic s(twice_u(x));
    const Vec slope = fma(x * x, Vec::set(0.2140644488178f), Vec::set(1.59576912160573f));
    return fma(x * s.derivative, slope, s.value);
  }
};
struct Silu {
  static Vec apply(Vec x) { return max(Vec::set(-88.0f), x) * sigmoid(x); }
  static Vec derivative(Vec x) {
    x = clamp(x, -88.0f, 88.0f);
    const Logistic s(x);
    return fma(x, s.derivative, s.value);
  }
};
struct Tanh {
  static Vec apply(Vec x) {
    // Near 0 a polynomial (relative error 4e-9): 2 sigmoid(2x) - 1 would cancel there.
    const Vec z = x * x;
    Vec p = Vec::set(-0.00571704653f);
    p = fma(p, z, Vec::set(0.0206505888f));
    p = fma(p, z, Vec::set(-0.0537434986f));
    p = fma(p, z, Vec::set(0.133314913f));
    p = fma(p, z, Vec::set(-0.333332839f));
    const Vec y = clamp(x, -44.0f, 44.0f);
    // y - y is 0, or NaN, which sigmoid does not keep.
    const Vec far = fma(Vec::set(2.0f), sigmoid(y + y), Vec::set(-1.0f) + (y - y));
    return select(abs(x) < Vec::set(0.625f), fma(p * z, x, x), far);
  }
  static Vec derivative(Vec x) {
    const Vec a = min(Vec::set(43.0f), abs(x));
    return fma(Vec::set(4.0f), Logistic(a + a).derivative, a - a);
  }
};

}  // namespace TAUT_ISA
}  // namespace taut
