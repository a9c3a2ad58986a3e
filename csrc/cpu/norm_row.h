// LayerNorm and RMSNorm of one row in fp32 scratch, and its gradient: for kernels that end in one.
#pragma once
#include "cpu/isa/columns.h"

namespace taut {
namespace TAUT_ISA {

struct Moments {
  float mean;  // 0 for RMSNorm
  float rstd;
};

// The sum of term(c, n) over the columns of a row, lane by lane; four sums side by side, added in a
// fixed order, so that an addition does not wait for the one before it.
template <class Term>
inline Vec lane_sums(int64_t columns, const Term& term) {
  Vec part[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  int64_t c = 0;
  for (; c + 4 * Vec::kWidth <= columns; c += 4 * Vec::kWidth)
    for (int i = 0; i < 4; ++i) part[i] = part[i] + term(c + i * Vec::kWidth, Vec::kWidth);
  for_columns(columns - c, [&](int64_t rest, int n) { part[0] = part[0] + term(c + rest, n); });
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// `total` holds the lane-wise sum of the row (of its squares for RMSNorm). The variance is taken
// in a second sweep, by the textbook formula: no cancellation.
inline Moments moments_of(const float* row, int64_t columns, Vec total, bool rms, float eps) {
  const float inverse = 1.0f / static_cast<float>(columns);
  const float first = reduce_add(total) * inverse;
  float variance = first;
  if (!rms) {
    float means[Vec::kWidth];
    Vec::set(first).store(means);
    const Vec squares = lane_sums(columns, [&](int64_t c, int n) {
      // The mean is loaded with the same mask, so that lanes past the end stay 0.
      const Vec d = load(row + c, n) - load(means, n);
      return d * d;
    });
    variance = reduce_add(squares) * inverse;
  }
  float rstd[Vec::kWidth];
  (Vec::set(1.0f) / sqrt(Vec::set(variance + eps))).store(rstd);
  return {rms ? 0.0f : first, rstd[0]};
}

// out = (row - mean) * rstd * weight + norm_bias; weight and norm_bias may be null.
template <class T, class Out>
inline void write_normalized(const float* row, int64_t columns, Moments moments, const T* weight,
                             const T* norm_bias, Out* out) {
  const Vec scale = Vec::set(moments.rstd);
  const Vec shift = Vec::set(moments.mean);
  for_columns(columns, [&](int64_t c, int n) {
    Vec v = (load(row + c, n) - shift) * scale;
    if (weight) v = v * load(weight + c, n);
    if (norm_bias) v = v + load(norm_bias + c, n);
    store(v, out + c, n);
  });
}

// The gradient with respect to `row`, which holds the row that was normalised and is overwritten;
// emit(c, n, v) receives it. Adds to dweight and dnorm_bias where they are not null.
template <class T, class Emit>
inline void norm_gradient(float* row, int64_t columns, Moments moments, bool rms, const T* grad,
                          const T* weight, float* dweight, float* dnorm_bias, const Emit& emit) {
  const float inverse = 1.0f / static_cast<float>(columns);
  const Vec scale = Vec::set(moments.rstd);
  const Vec shift = Vec::set(moments.mean);
  Vec sum = Vec::zero();
  Vec products = Vec::zero();
  for_columns(columns, [&](int64_t c, int n) {
    const Vec normalized = (load(row + c, n) - shift) * scale;
    store(normalized, row + c, n);
    Vec g = load(grad + c, n);
    if (dnorm_bias) store(load(dnorm_bias + c, n) + g, dnorm_bias + c, n);
    if (dweight) store(fma(g, normalized, load(dweight + c, n)), dweight + c, n);
    if (weight) g = g * load(weight + c, n);
    sum = sum + g;  // lanes past the end are 0 in g
    products = fma(g, normalized, products);
  });
  const Vec mean_g = Vec::set(rms ? 0.0f : reduce_add(sum) * inverse);
  const Vec mean_product = Vec::set(reduce_add(products) * inverse);
  for_columns(columns, [&](int64_t c, int n) {
    Vec g = load(grad + c, n);
    if (weight) g = g * load(weight + c, n);
    emit(c, n, scale * fnma(load(row + c, n), mean_product, g - mean_g));
  });
}

}  // namespace TAUT_ISA
}  // namespace taut
