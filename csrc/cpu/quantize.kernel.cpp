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

// A step along the depth of a product: one fp32 of each factor, or a pair of bf16.
struct FloatStep {
  using Element = float;
  static constexpr int64_t kDepth = 1;
  static Vec right(const float* b) { return Vec::load(b); }
  static Vec add(const float* a, Vec b, Vec sum) { return fma(Vec::set(*a), b, sum); }
};
#if defined(__AVX512BF16__)
struct PairStep {
  using Element = bf16;
  static constexpr int64_t kDepth = 2;
  static Pairs right(const bf16* b) { return Pairs::load(b); }
  static Vec add(const bf16* a, Pairs b, Vec sum) { return dot(Pairs::set(a), b, sum); }
};
#endif

// c (rows, stride) = a (rows, steps) b (steps, stride), stride a multiple of Vec::kWidth.
template <class Step>
struct Product {
  using Element = typename Step::Element;

  const Element* a;  // row i, step k at a[i * a_row + k * a_step]
  int64_t a_row, a_step;
  const Element* b;  // step k, column j at b[(k * stride + j) * kDepth]
  float* c;
  int64_t rows, steps, stride;

  void run() const {
    int64_t column = 0;
    for (; column + 2 * Vec::kWidth <= stride; column += 2 * Vec::kWidth) columns<2>(column);
    if (column < stride) columns<1>(column);
  }

 private:
  template <int kVectors>
  void columns(int64_t column) const {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) tile<4, kVectors>(i, column);
    for (; i < rows; ++i) tile<1, kVectors>(i, column);
  }

  template <int kRows, int kVectors>
  void tile(int64_t row, int64_t column) const {
    Vec sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Vec::zero();
    const Element* left = a + row * a_row;
    const Element* above = b + column * Step::kDepth;
    for (int64_t k = 0; k < steps; ++k) {
      decltype(Step::right(above)) right[kVectors];
      for (int v = 0; v < kVectors; ++v)
        right[v] = Step::right(above + (k * stride + v * Vec::kWidth) * Step::kDepth);
      for (int i = 0; i < kRows; ++i)
        for (int v = 0; v < kVectors; ++v)
          sum[i][v] = Step::add(left + i * a_row + k * a_step, right[v], sum[i][v]);
    }
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < kVectors; ++v)
        sum[i][v].store(c + (row + i) * stride + column + v * Vec::kWidth);
  }
};

template <class T>
inline void widen(const T* from, float* to, int64_t count) {
  for_columns(count, [&](int64_t c, int n) { store(load(from + c, n), to + c, n); });
}

// Rows of x, (a, b) each, times the right factor.
template <class T>
class TimesRight {
 public:
  // scratch: b * stride and a * b floats.
  TimesRight(const KroneckerParams& p, float* right, float* row) : p_(p), right_(right), row_(row) {
    for (int64_t k = 0; k < p.b; ++k)
      widen(static_cast<const T*>(p.right) + k * p.b, right + k * p.stride, p.b);
  }
  void run(const T* x, float* out) const {
    widen(x, row_, p_.a * p_.b);
    Product<FloatStep>{row_, p_.b, 1, right_, out, p_.a, p_.b, p_.stride}.run();
  }

 private:
  const KroneckerParams& p_;
  float *right_, *row_;
};

#if defined(__AVX512BF16__)
// By pairs: products are exact as they are by floats, but subnormals count as 0. An odd b gets a
// zero more.
template <>
class TimesRight<bf16> {
 public:
  TimesRight(const KroneckerParams& p, float* right, float* row)
      : p_(p), right_(reinterpret_cast<bf16*>(right)), row_(reinterpret_cast<bf16*>(row)) {
    const bf16* from = static_cast<const bf16*>(p.right);
    for (int64_t k = 0; k < p.b; k += 2)
      for_columns(p.b, [&](int64_t c, int n) {
        const bool paired = k + 1 < p.b;
        const Vec odd = paired ? load(from + (k + 1) * p.b + c, n) : Vec::zero();
        pairs_of(load(from + k * p.b + c, n), odd).store(right_ + (k * p.stride + 2 * c));
      });
  }
  void run(const bf16* x, float* out) const {
    const int64_t even = (p_.b + 1) / 2 * 2;
    if (even != p_.b) {
      for (int64_t i = 0; i < p_.a; ++i) {
        std::memcpy(row_ + i * even, x + i * p_.b, static_cast<size_t>(p_.b) * sizeof(bf16));
        row_[i * even + p_.b] = bf16{};
      }
      x = row_;
    }
    Product<PairStep>{x, even, 2, right_, out, p_.a, even / 2, p_.stride}.run();
  }

 private:
  const KroneckerParams& p_;
  bf16 *right_, *row_;
};
#endif

template <class T>
void kronecker_rows(const KroneckerParams& p, float* scratch, int64_t begin, int64_t end) {
  const int64_t stride = p.stride;
  float* right = scratch;
  float* times_right = right + p.b * stride;
  float* result = times_right + p.a * stride;
  float* left = result + p.a * stride;
  float* row = left + p.a * p.a;

  std::memset(right, 0, static_cast<size_t>(p.b * stride) * sizeof(float));
  widen(static_cast<const T*>(p.left), left, p.a * p.a);
  const TimesRight<T> by_right(p, right, row);

  for (int64_t r = begin; r < end; ++r) {
    by_right.run(static_cast<const T*>(p.x) + r * p.x_stride, times_right);
    Product<FloatStep>{left, 1, p.a, times_right, result, p.a, p.a, stride}.run();
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
