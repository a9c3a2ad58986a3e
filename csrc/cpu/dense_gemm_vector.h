// The matrix product of packed linear layers by vector instructions.
//
// A tile is kTileRows rows x kTileVectors vectors of channels, summed in registers. AVX-512 has 32:
// 6 x 4 sums, 4 of the weight, 1 of x. Each k-step loads the 4 and broadcasts 6 values of x, 10
// loads for 24 multiply-adds. AVX2 and SSE2 have 16.
#pragma once
#include <type_traits>

#include "cpu/dense_gemm.h"
#include "cpu/isa/columns.h"
#include "cpu/isa/reload.h"

namespace taut {
namespace TAUT_ISA {

#if defined(TAUT_ISA_portable)
constexpr int kTileRows = 3, kTileVectors = 4;
#elif defined(TAUT_ISA_avx2)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 6, kTileVectors = 4;
#endif
static_assert(kPanel % (kTileVectors * Vec::kWidth) == 0, "a panel is a whole number of tiles");

// Vectors of a tile of so many rows. Few rows wait for the weight: with AVX2 they read longer
// pieces of it at a time, one row all of a panel's 256 bytes of fp32.
template <int Rows>
#if defined(TAUT_ISA_avx2)
constexpr int kVectorsOf = Rows == 1   ? 8
                           : Rows <= 3 ? 4
                                       : kTileVectors;
#else
constexpr int kVectorsOf = kTileVectors;
#endif

// One multiply-add of a k-step: how an operand is read from a row of x and from the panel.
struct Single {
  static Vec weight(const float* p) { return Vec::load(p); }
  static Vec value(const float* p) { return Vec::set(*p); }
  static Vec add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
// fp16 as fp32; of x, rows are widened before, once for all channels of a panel.
struct Half {
  static Vec weight(const f16* p) { return Vec::load(p); }
  static Vec value(const float* p) { return Vec::set(*p); }
  static Vec add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
#if defined(__AVX512BF16__)
struct WholePair {
  static Pairs weight(const bf16* p) { return Pairs::load(p); }
  static Pairs value(const bf16* p) { return Pairs::set(p); }
  static Vec add(Pairs a, Pairs b, Vec c) { return dot(a, b, c); }
};
#else
// bf16 in the same way.
struct EvenOfPair {
  static Vec weight(const bf16* p) { return Pairs::load(p).even(); }
  static Vec value(const float* p) { return Vec::set(*p); }
  static Vec add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
struct OddOfPair {
  static Vec weight(const bf16* p) { return Pairs::load(p).odd(); }
  static Vec value(const float* p) { return Vec::set(*p); }
  static Vec add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
#endif

// How many k a step of the panel holds: one, or a pair of bf16.
template <class T>
constexpr int kStep = 1;
template <>
inline constexpr int kStep<bf16> = 2;

template <class Operand, int Rows, int Vectors, class X, class T>
inline void multiply_add(Vec (&sums)[Rows][Vectors], const X* x, int64_t x_stride,
                         const T* weights) {
  decltype(Operand::weight(weights)) weight[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v)
    weight[v] = Operand::weight(weights + v * Vec::kWidth * kStep<T>);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const auto value = Operand::value(x + r * x_stride);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sums[r][v] = Operand::add(value, weight[v], sums[r][v]);
  }
}

template <int Rows, int Vectors>
inline void k_step(Vec (&sums)[Rows][Vectors], const float* x, int64_t x_stride,
                   const float* weights) {
  multiply_add<Single>(sums, x, x_stride, weights);
}
template <int Rows, int Vectors>
inline void k_step(Vec (&sums)[Rows][Vectors], const float* x, int64_t x_stride,
                   const f16* weights) {
  multiply_add<Half>(sums, x, x_stride, weights);
}
#if defined(__AVX512BF16__)
template <int Rows, int Vectors>
inline void k_step(Vec (&sums)[Rows][Vectors], const bf16* x, int64_t x_stride,
                   const bf16* weights) {
  multiply_add<WholePair>(sums, x, x_stride, weights);
}
template <class T>
constexpr bool kWidened = false;
template <>
inline constexpr bool kWidened<f16> = true;
#else
template <int Rows, int Vectors>
inline void k_step(Vec (&sums)[Rows][Vectors], const float* x, int64_t x_stride,
                   const bf16* weights) {
  multiply_add<EvenOfPair>(sums, x, x_stride, weights);
  // Both halves come from the same pairs: kept for the second half, they would take registers from
  // the sums.
  reload_memory();
  multiply_add<OddOfPair>(sums, x + 1, x_stride, weights);
}
template <class T>
constexpr bool kWidened = sizeof(T) == 2;
#endif

// Products of fp32 are summed in runs of so many k, and the runs' sums added up: one run over
// K = 3072 has three times the rounding error, and widened rows must stay in L1. bf16 results are
// rounded far more coarsely than that.
template <class T>
constexpr int64_t kRun = sizeof(T) == 4 || kWidened<T> ? 256 : INT64_MAX;

// sums over k in [0, count) of Rows rows of x times a tile's channels.
template <int Rows, int Vectors, class X, class T>
inline void multiply_run(Vec (&sums)[Rows][Vectors], const X* x, int64_t x_stride, const T* weights,
                         int64_t count) {
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sums[r][v] = Vec::zero();
  int64_t k = 0;
  for (; k + kStep<T> <= count; k += kStep<T>, weights += kPanel * kStep<T>)
    k_step(sums, x + k, x_stride, weights);
  if (k < count) {  // the last k of an odd number has no partner: pair it with zero
    X last[Rows][2] = {};
    for (int r = 0; r < Rows; ++r) last[r][0] = x[r * x_stride + k];
    k_step(sums, last[0], 2, weights);
  }
}

// out (Rows, kPanel) = Rows rows of x times one panel; with `scale` (kPanel), which needs
// in_features <= kRun, that is scaled and added to what is there.
template <int Rows, class T>
void multiply_tile(const T* x, int64_t x_stride, const T* panel, int64_t in_features,
                   const float* scale, float* out) {
  constexpr int kVectors = kVectorsOf<Rows>;
  constexpr int64_t kTileColumns = kVectors * Vec::kWidth;
  int64_t end = 0;
  for (int64_t begin = 0; begin < in_features; begin = end) {
    end = in_features - begin > kRun<T> ? begin + kRun<T> : in_features;
    [[maybe_unused]] float wide[kWidened<T> ? Rows : 1][kWidened<T> ? kRun<T> : 1];
    if constexpr (kWidened<T>)
      for (int r = 0; r < Rows; ++r)
        for_columns(end - begin, [&](int64_t k, int n) {
          store(load(x + r * x_stride + begin + k, n), wide[r] + k, n);
        });
    for (int64_t column = 0; column < kPanel; column += kTileColumns) {
      const T* weights = panel + begin * kPanel + column * kStep<T>;
      Vec sums[Rows][kVectors];
      if constexpr (kWidened<T>)
        multiply_run(sums, wide[0], kRun<T>, weights, end - begin);
      else
        multiply_run(sums, x + begin, x_stride, weights, end - begin);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const int64_t c = column + v * Vec::kWidth;
          float* place = out + r * kPanel + c;
          if (scale) {
            fma(sums[r][v], Vec::load(scale + c), Vec::load(place)).store(place);
          } else {
            (begin ? Vec::load(place) + sums[r][v] : sums[r][v]).store(place);
          }
        }
    }
  }
}

// Calls body(constant) where the constant's value is `rows`, at most kTileRows.
template <class Body>
inline void with_rows(int64_t rows, const Body& body) {
  switch (rows) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
#if !defined(TAUT_ISA_portable)
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
#endif
    default: return body(std::integral_constant<int, kTileRows>{});
  }
}

template <class T>
inline void multiply_rows(int64_t rows, const T* x, int64_t x_stride, const T* panel,
                          int64_t in_features, const float* scale, float* out) {
  with_rows(rows, [&](auto count) {
    multiply_tile<decltype(count)::value>(x, x_stride, panel, in_features, scale, out);
  });
}

// Calls finish(sums, stride, row, rows, channel, channels) for every part of the block, and
// prepare(row, rows, channel) before its product.
template <class T, class Prepare, class Finish>
void multiply_by_vectors(const GemmParams& p, const GemmBlock& block, const Prepare& prepare,
                         const Finish& finish) {
  alignas(64) float sums[kTileRows * kPanel];
  const int64_t panel_size = (p.in_features + kStep<T> - 1) / kStep<T> * kStep<T> * kPanel;
  // Tiles of equal rows: a narrow one would wait for the panel rather than for the multiplier.
  const int64_t block_rows = block.row_end - block.row_begin;
  const int64_t tiles = (block_rows + kTileRows - 1) / kTileRows;
  for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
    const T* weights = static_cast<const T*>(p.packed) + panel * panel_size;
    const int64_t channel = panel * kPanel;
    const int64_t left = p.out_features - channel;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = block.row_begin + block_rows * tile / tiles;
      const int64_t rows = block.row_begin + block_rows * (tile + 1) / tiles - row;
      const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
      prepare(row, rows, channel);
      multiply_rows(rows, x, p.x_stride, weights, p.in_features, nullptr, sums);
      finish(sums, kPanel, row, rows, channel, left < kPanel ? left : kPanel);
    }
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
