// bias + residual + LayerNorm or RMSNorm, one pass over each row.
//
// A row is summed into an fp32 scratch row (it stays in L1), its mean and variance are taken from
// there in two sweeps (the textbook formula: no cancellation), and it is written once.
#include "cpu/norm.h"

#include <vector>

#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {
namespace {

template <class Body>
inline void for_columns(int64_t columns, const Body& body) {
  int64_t c = 0;
  for (; c + Vec::kWidth <= columns; c += Vec::kWidth) body(c, Vec::kWidth);
  if (c < columns) body(c, static_cast<int>(columns - c));
}

template <class T>
inline Vec load(const T* p, int n) {
  return n == Vec::kWidth ? Vec::load(p) : Vec::load(p, n);
}
template <class T>
inline void store(Vec v, T* p, int n) {
  n == Vec::kWidth ? v.store(p) : v.store(p, n);
}

template <class T>
void norm_rows(const NormParams& p, int64_t begin, int64_t end) {
  const int64_t columns = p.columns;
  const float inverse = 1.0f / static_cast<float>(columns);
  std::vector<float> scratch(static_cast<size_t>(columns));
  float* row = scratch.data();
  const T* bias = static_cast<const T*>(p.bias);
  const T* weight = static_cast<const T*>(p.weight);
  const T* norm_bias = static_cast<const T*>(p.norm_bias);

  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    const T* residual =
        p.residual ? static_cast<const T*>(p.residual) + r * p.residual_stride : nullptr;
    T* out = static_cast<T*>(p.out) + r * columns;
    T* sum = p.sum ? static_cast<T*>(p.sum) + r * columns : nullptr;

    Vec total = Vec::zero();
    for_columns(columns, [&](int64_t c, int n) {
      Vec v = load(x + c, n);
      if (bias) v = v + load(bias + c, n);
      if (residual) v = v + load(residual + c, n);
      if (sum) store(v, sum + c, n);
      store(v, row + c, n);
      total = p.rms ? fma(v, v, total) : total + v;
    });
    const float mean = p.rms ? 0.0f : reduce_add(total) * inverse;
    float variance = reduce_add(total) * inverse;
    if (!p.rms) {
      float means[Vec::kWidth];
      Vec::set(mean).store(means);
      Vec squares = Vec::zero();
      for_columns(columns, [&](int64_t c, int n) {
        // The mean is loaded with the same mask, so that lanes past the end stay 0.
        const Vec d = load(row + c, n) - load(means, n);
        squares = fma(d, d, squares);
      });
      variance = reduce_add(squares) * inverse;
    }
    float rstd_lanes[Vec::kWidth];
    (Vec::set(1.0f) / sqrt(Vec::set(variance + p.eps))).store(rstd_lanes);
    const float rstd = rstd_lanes[0];
    if (p.mean) p.mean[r] = mean;
    p.rstd[r] = rstd;

    const Vec scale = Vec::set(rstd);
    const Vec shift = Vec::set(mean);
    for_columns(columns, [&](int64_t c, int n) {
      Vec v = (load(row + c, n) - shift) * scale;
      if (weight) v = v * load(weight + c, n);
      if (norm_bias) v = v + load(norm_bias + c, n);
      store(v, out + c, n);
    });
  }
}

}  // namespace

void norm_rows_f32(const NormParams& p, int64_t begin, int64_t end) {
  norm_rows<float>(p, begin, end);
}
void norm_rows_bf16(const NormParams& p, int64_t begin, int64_t end) {
  norm_rows<bf16>(p, begin, end);
}
void norm_rows_f16(const NormParams& p, int64_t begin, int64_t end) {
  norm_rows<f16>(p, begin, end);
}

}  // namespace TAUT_ISA
}  // namespace taut
