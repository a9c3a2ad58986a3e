// Rows to int8, LayerNorm to int8, and Kronecker products of rows.
#include "cpu/quantize.h"

#include "cpu/isa/exchange.h"
#include "cpu/norm_row.h"
#include "cpu/quantize_row.h"

namespace taut {
namespace TAUT_ISA {
namespace {

// ---- quantize_per_token

// One butterfly of stride kStride within the lanes: (a + b, a - b) at lanes i and i + kStride.
template <int kStride>
inline Vec butterfly(Vec v) {
  alignas(64) float signs[Vec::kWidth];
  for (int i = 0; i < Vec::kWidth; ++i) signs[i] = i & kStride ? -1.0f : 1.0f;
  return fma(v, Vec::load(signs), exchange<kStride>(v));
}

// A block of kHadamard floats times the Hadamard matrix over sqrt(kHadamard), strides ascending.
inline void hadamard_block(float* block) {
  constexpr int kVectors = kHadamard / Vec::kWidth;
  Vec v[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    v[i] = butterfly<2>(butterfly<1>(Vec::load(block + i * Vec::kWidth)));
    if constexpr (Vec::kWidth > 4) v[i] = butterfly<4>(v[i]);
    if constexpr (Vec::kWidth > 8) v[i] = butterfly<8>(v[i]);
  }
  for (int stride = 1; stride < kVectors; stride *= 2)
    for (int i = 0; i < kVectors; ++i) {
      if (i & stride) continue;
      const Vec even = v[i], odd = v[i + stride];
      v[i] = even + odd;
      v[i + stride] = even - odd;
    }
  const Vec norm = Vec::set(0.08838834764831845f);
  for (int i = 0; i < kVectors; ++i) (v[i] * norm).store(block + i * Vec::kWidth);
}

template <class T>
inline float quantize_midrise(const T* row, int64_t columns, int64_t bits, float step, int8_t* q) {
  const float absmax = absmax_of(row, columns);
  if (absmax != absmax) {
    std::memset(q, 0, static_cast<size_t>(columns));
    return absmax;
  }
  Vec squares = Vec::zero();
  for_columns(columns, [&](int64_t c, int n) {
    const Vec v = load(row + c, n);
    squares = fma(v, v, squares);
  });
  const float mean = reduce_add(squares) / static_cast<float>(columns);
  const float scale = __builtin_sqrtf(mean) * step + 1e-8f;
  const float half = static_cast<float>(1 << (bits - 1));
  const Vec divisor = Vec::set(scale), one = Vec::set(1.0f);
  for_columns(columns, [&](int64_t c, int n) {
    const Vec level = clamp(load(row + c, n) / divisor, -half, half - 1.0f);
    const Vec nearest = round(level);
    store(to_ints(nearest - select(level < nearest, one, Vec::zero())), q + c, n);
  });
  return scale;
}

template <class T>
inline void quantize_row_in_groups(const QuantizeParams& p, const T* row, int8_t* q, float* scale) {
  if (p.grid == QuantizeGrid::midrise) {
    for_groups(p.columns, p.group_size, [&](int64_t g, int64_t c, int64_t n) {
      scale[g] = quantize_midrise(row + c, n, p.bits, p.midrise_step, q + c);
    });
  } else {
    const Grid grid =
        p.grid == QuantizeGrid::absmax ? absmax_grid(p.bits) : full_range_grid(p.bits);
    quantize_groups(row, p.columns, p.group_size, grid, q, scale, nullptr);
  }
}

template <class T>
void quantize_rows(const QuantizeParams& p, float* row, int64_t begin, int64_t end) {
  const bool as_it_is = !p.channel_scale && !p.channel_shift && !p.hadamard;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    int8_t* q = p.q + r * p.columns;
    float* scale = p.scale + r * p.groups;
    if (as_it_is) {
      quantize_row_in_groups(p, x, q, scale);
      continue;
    }
    // Through memory: no compiler may fuse the product into the first sum of the butterflies.
    for_columns(p.columns, [&](int64_t c, int n) {
      Vec v = load(x + c, n);
      if (p.channel_shift) v = v - load(p.channel_shift + c, n);
      if (p.channel_scale) v = v * load(p.channel_scale + c, n);
      store(v, row + c, n);
    });
    if (p.hadamard)
      for (int64_t c = 0; c < p.columns; c += kHadamard) hadamard_block(row + c);
    quantize_row_in_groups(p, row, q, scale);
  }
}

// ---- layer_norm_quantize

template <class T>
void norm_quantize_rows(const NormQuantizeParams& p, float* row, int64_t begin, int64_t end) {
  const int64_t columns = p.columns;
  const T* bias = static_cast<const T*>(p.bias);
  const T* weight = static_cast<const T*>(p.weight);
  const T* norm_bias = static_cast<const T*>(p.norm_bias);
  const T* quant_weight = static_cast<const T*>(p.quant_weight);
  const T* quant_bias = static_cast<const T*>(p.quant_bias);
  const Grid grid = absmax_grid(p.bits);

  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    const T* residual =
        p.residual ? static_cast<const T*>(p.residual) + r * p.residual_stride : nullptr;
    T* out = static_cast<T*>(p.out) + r * columns;
    Vec total = Vec::zero();
    for_columns(columns, [&](int64_t c, int n) {
      Vec v = load(x + c, n);
      if (bias) v = v + load(bias + c, n);
      if (residual) v = v + load(residual + c, n);
      store(v, row + c, n);
      total = total + v;
    });
    const Moments moments = moments_of(row, columns, total, false, p.eps);
    if (p.own_affine) {
      write_normalized(row, columns, moments, weight, norm_bias, out);
      write_normalized(row, columns, moments, quant_weight, quant_bias, row);
    } else {
      write_normalized(row, columns, moments, weight, norm_bias, row);
      for_columns(columns, [&](int64_t c, int n) { store(load(row + c, n), out + c, n); });
    }
    p.scale[r] = quantize_row(row, columns, grid, p.q + r * columns).scale;
  }
}

// ---- kronecker

// kRows rows of c = a b over kVectors vectors of columns: a(i, k) = a[i * a_row + k * a_step].
template <int kRows, int kVectors>
inline void product_tile(const float* a, int64_t a_row, int64_t a_step, const float* b, float* c,
                         int64_t depth, int64_t stride) {
  Vec sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vec::zero();
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = Vec::load(b + k * stride + v * Vec::kWidth);
    for (int i = 0; i < kRows; ++i) {
      const Vec left = Vec::set(a[i * a_row + k * a_step]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(left, right[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v].store(c + i * stride + v * Vec::kWidth);
}

template <int kVectors>
inline void product_columns(const float* a, int64_t a_row, int64_t a_step, const float* b, float* c,
                            int64_t rows, int64_t depth, int64_t stride) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4)
    product_tile<4, kVectors>(a + i * a_row, a_row, a_step, b, c + i * stride, depth, stride);
  for (; i < rows; ++i)
    product_tile<1, kVectors>(a + i * a_row, a_row, a_step, b, c + i * stride, depth, stride);
}

// c (rows, stride) = a (rows, depth) b (depth, stride); stride is a multiple of Vec::kWidth.
inline void product(const float* a, int64_t a_row, int64_t a_step, const float* b, float* c,
                    int64_t rows, int64_t depth, int64_t stride) {
  int64_t column = 0;
  for (; column + 2 * Vec::kWidth <= stride; column += 2 * Vec::kWidth)
    product_columns<2>(a, a_row, a_step, b + column, c + column, rows, depth, stride);
  if (column < stride)
    product_columns<1>(a, a_row, a_step, b + column, c + column, rows, depth, stride);
}

template <class T>
inline void widen(const T* from, float* to, int64_t count) {
  for_columns(count, [&](int64_t c, int n) { store(load(from + c, n), to + c, n); });
}

template <class T>
void kronecker_rows(const KroneckerParams& p, float* scratch, int64_t begin, int64_t end) {
  const int64_t stride = p.stride;
  float* right = scratch;
  float* times_right = right + p.b * stride;
  float* result = times_right + p.a * stride;
  float* left = result + p.a * stride;
  float* row = left + p.a * p.a;

  std::memset(right, 0, static_cast<size_t>(p.b * stride) * sizeof(float));
  for (int64_t k = 0; k < p.b; ++k)
    widen(static_cast<const T*>(p.right) + k * p.b, right + k * stride, p.b);
  widen(static_cast<const T*>(p.left), left, p.a * p.a);

  for (int64_t r = begin; r < end; ++r) {
    widen(static_cast<const T*>(p.x) + r * p.x_stride, row, p.a * p.b);
    product(row, p.b, 1, right, times_right, p.a, p.b, stride);
    product(left, 1, p.a, times_right, result, p.a, p.a, stride);
    T* out = static_cast<T*>(p.out) + r * p.a * p.b;
    for (int64_t i = 0; i < p.a; ++i)
      for_columns(p.b, [&](int64_t c, int n) {
        store(load(result + i * stride + c, n), out + i * p.b + c, n);
      });
  }
}

}  // namespace

void quantize_rows_f32(const QuantizeParams& p, float* scratch, int64_t begin, int64_t end) {
  quantize_rows<float>(p, scratch, begin, end);
}
void quantize_rows_bf16(const QuantizeParams& p, float* scratch, int64_t begin, int64_t end) {
  quantize_rows<bf16>(p, scratch, begin, end);
}
void quantize_rows_f16(const QuantizeParams& p, float* scratch, int64_t begin, int64_t end) {
  quantize_rows<f16>(p, scratch, begin, end);
}

void norm_quantize_rows_f32(const NormQuantizeParams& p, float* scratch, int64_t begin,
                            int64_t end) {
  norm_quantize_rows<float>(p, scratch, begin, end);
}
void norm_quantize_rows_bf16(const NormQuantizeParams& p, float* scratch, int64_t begin,
                             int64_t end) {
  norm_quantize_rows<bf16>(p, scratch, begin, end);
}
void norm_quantize_rows_f16(const NormQuantizeParams& p, float* scratch, int64_t begin,
                            int64_t end) {
  norm_quantize_rows<f16>(p, scratch, begin, end);
}

void kronecker_rows_f32(const KroneckerParams& p, float* scratch, int64_t begin, int64_t end) {
  kronecker_rows<float>(p, scratch, begin, end);
}
void kronecker_rows_bf16(const KroneckerParams& p, float* scratch, int64_t begin, int64_t end) {
  kronecker_rows<bf16>(p, scratch, begin, end);
}
void kronecker_rows_f16(const KroneckerParams& p, float* scratch, int64_t begin, int64_t end) {
  kronecker_rows<f16>(p, scratch, begin, end);
}

}  // namespace TAUT_ISA
}  // namespace taut
