// One vector per sequence from the rows of its tokens, and its gradient.
//
// A column is reduced over the tokens in order, so a sequence gives the same bits in any batch.
#include "cpu/pooling.h"

#include "cpu/isa/columns.h"

namespace taut {
namespace TAUT_ISA {
namespace {

constexpr float kSmallestNorm = 1e-12f;

// NaN is neither below 1 nor above 0.
inline Vec if_nan(Vec x, Vec then, Vec otherwise) {
  return select(x < Vec::set(1.0f), otherwise, select(Vec::zero() < x, otherwise, then));
}

// max(best, x) where a NaN on either side stays.
inline Vec max_or_nan(Vec best, Vec x) { return if_nan(x, x, select(best < x, x, best)); }

template <class T>
struct Sequence {
  const T* x;  // its first row
  int64_t stride, begin, length;

  Sequence(const PoolParams& p, int64_t s)
      : stride(p.x_stride), begin(p.cu_seqlens[s]), length(p.cu_seqlens[s + 1] - begin) {
    x = static_cast<const T*>(p.x) + begin * stride;
  }
  const T* row(int64_t i) const { return x + i * stride; }
};

// Before L2 normalisation, into an fp32 row. The sequence is not empty.
template <class T>
void reduce_tokens(const PoolParams& p, const Sequence<T>& sequence, float* pooled) {
  const T* first = sequence.row(p.mode == PoolMode::last ? sequence.length - 1 : 0);
  for_columns(p.columns, [&](int64_t c, int n) { store(load(first + c, n), pooled + c, n); });
  if (p.mode == PoolMode::cls || p.mode == PoolMode::last) return;
  for (int64_t i = 1; i < sequence.length; ++i) {
    const T* row = sequence.row(i);
    for_columns(p.columns, [&](int64_t c, int n) {
      const Vec v = load(row + c, n), before = load(pooled + c, n);
      store(p.mode == PoolMode::max ? max_or_nan(before, v) : before + v, pooled + c, n);
    });
  }
  if (p.mode == PoolMode::mean) {
    const Vec length = Vec::set(static_cast<float>(sequence.length));
    for_columns(p.columns,
                [&](int64_t c, int n) { store(load(pooled + c, n) / length, pooled + c, n); });
  }
}

inline float dot(const float* a, const float* b, int64_t columns) {
  Vec sum = Vec::zero();
  for_columns(columns, [&](int64_t c, int n) { sum = fma(load(a + c, n), load(b + c, n), sum); });
  return reduce_add(sum);
}

inline float l2_norm(const float* row, int64_t columns) {
  float norm[Vec::kWidth];
  sqrt(Vec::set(dot(row, row, columns))).store(norm);
  return norm[0];
}

template <class T>
void pool(const PoolParams& p, float* pooled, int64_t s) {
  T* out = static_cast<T*>(p.out) + s * p.columns;
  const Sequence<T> sequence(p, s);
  if (sequence.length == 0) {
    std::memset(out, 0, static_cast<size_t>(p.columns) * sizeof(T));
    return;
  }
  reduce_tokens(p, sequence, pooled);
  float norm = p.normalize ? l2_norm(pooled, p.columns) : 1.0f;
  if (norm < kSmallestNorm) norm = kSmallestNorm;
  const Vec divisor = Vec::set(norm);
  for_columns(p.columns,
              [&](int64_t c, int n) { store(load(pooled + c, n) / divisor, out + c, n); });
}

// gradient: in the one of the normalised vector, out the one of `pooled`.
void unnormalize(const float* pooled, float* gradient, int64_t columns) {
  const float norm = l2_norm(pooled, columns);
  const bool tiny = norm <= kSmallestNorm;
  const Vec divisor = Vec::set(tiny ? kSmallestNorm : norm);
  const Vec along = Vec::set(tiny ? 0.0f : dot(pooled, gradient, columns) / norm) / divisor;
  for_columns(columns, [&](int64_t c, int n) {
    store(fnma(load(pooled + c, n), along, load(gradient + c, n)) / divisor, gradient + c, n);
  });
}

template <class T>
void pool_backward(const PoolParams& p, float* scratch, int64_t s) {
  const int64_t columns = p.columns;
  const Sequence<T> sequence(p, s);
  if (sequence.length == 0) return;
  float* gradient = scratch;
  float* pooled = scratch + columns;
  const T* grad_out = static_cast<const T*>(p.grad_out) + s * p.grad_out_stride;
  T* dx = static_cast<T*>(p.out) + sequence.begin * columns;

  for_columns(columns, [&](int64_t c, int n) { store(load(grad_out + c, n), gradient + c, n); });
  if (p.normalize || p.mode == PoolMode::max) reduce_tokens(p, sequence, pooled);
  if (p.normalize) unnormalize(pooled, gradient, columns);

  if (p.mode == PoolMode::mean) {
    const Vec length = Vec::set(static_cast<float>(sequence.length));
    for_columns(columns,
                [&](int64_t c, int n) { store(load(gradient + c, n) / length, dx + c, n); });
    for (int64_t i = 1; i < sequence.length; ++i)
      std::memcpy(dx + i * columns, dx, static_cast<size_t>(columns) * sizeof(T));
  } else if (p.mode == PoolMode::max) {
    // A column's gradient goes to its first maximal token; what is left for later ones is 0. Where
    // the maximum is NaN, tokens are compared by 1 for NaN, 0 for any number.
    const Vec zero = Vec::zero(), one = Vec::set(1.0f);
    for (int64_t i = 0; i < sequence.length; ++i) {
      const T* row = sequence.row(i);
      for_columns(columns, [&](int64_t c, int n) {
        const Vec best = load(pooled + c, n), left = load(gradient + c, n);
        const Vec x = load(row + c, n);
        const Mask below = if_nan(best, if_nan(x, one, zero), x) < if_nan(best, one, best);
        store(select(below, zero, left), dx + i * columns + c, n);
        store(select(below, left, zero), gradient + c, n);
      });
    }
  } else {
    std::memset(dx, 0, static_cast<size_t>(sequence.length * columns) * sizeof(T));
    T* row = dx + (p.mode == PoolMode::last ? sequence.length - 1 : 0) * columns;
    for_columns(columns, [&](int64_t c, int n) { store(load(gradient + c, n), row + c, n); });
  }
}

}  // namespace

void pool_f32(const PoolParams& p, float* scratch, int64_t s) { pool<float>(p, scratch, s); }
void pool_bf16(const PoolParams& p, float* scratch, int64_t s) { pool<bf16>(p, scratch, s); }
void pool_f16(const PoolParams& p, float* scratch, int64_t s) { pool<f16>(p, scratch, s); }
void pool_backward_f32(const PoolParams& p, float* scratch, int64_t s) {
  pool_backward<float>(p, scratch, s);
}
void pool_backward_bf16(const PoolParams& p, float* scratch, int64_t s) {
  pool_backward<bf16>(p, scratch, s);
}
void pool_backward_f16(const PoolParams& p, float* scratch, int64_t s) {
  pool_backward<f16>(p, scratch, s);
}

}  // namespace TAUT_ISA
}  // namespace taut
