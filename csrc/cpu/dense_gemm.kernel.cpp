// x W^T over a packed weight, with what follows a linear layer done before its sums leave the
// cache: bias + activation, or bias + residual + LayerNorm.
//
// An element's products are added in an order that depends on K only: not on the row, the number of
// rows, or the threads. So a row's result is the same in any batch.
#include "cpu/dense_gemm.h"

#include "cpu/dense_gemm_vector.h"
#if defined(TAUT_ISA_avx2)
#include "cpu/dense_gemm_chunks.h"
#endif
#include "cpu/gemm_epilogue.h"
#include "cpu/isa/prefetch.h"
#include "cpu/norm_row.h"
#if defined(TAUT_ISA_amx)
#include "cpu/dense_gemm_tiles.h"
#define TAUT_BF16_TILES
#endif

namespace taut {
namespace TAUT_ISA {
namespace {

#if defined(TAUT_BF16_TILES)
template <class T>
constexpr bool kByTiles = std::is_same_v<T, bf16>;
#else
template <class>
constexpr bool kByTiles = false;
#endif

// Whichever way is faster for so many rows: both give the same sums.
template <class T, class Prepare, class Finish>
inline void multiply_block(const GemmParams& p, const GemmBlock& block, const Prepare& prepare,
                           const Finish& finish) {
#if defined(TAUT_ISA_avx2)
  GemmBlock part = block;
  for (; block.row_end - part.row_begin >= kWorthChunks; part.row_begin = part.row_end) {
    const int64_t left = block.row_end - part.row_begin;
    part.row_end = part.row_begin + (left < kChunkRows ? left : kChunkRows);
    multiply_by_chunks<T>(p, part, finish);
  }
  part.row_end = block.row_end;
  if (part.row_begin < part.row_end) multiply_by_vectors<T>(p, part, prepare, finish);
#else
  multiply_by_vectors<T>(p, block, prepare, finish);
#endif
}

// Calls finish(sums, stride, row, rows, channel, channels) for every part of the block and, but for
// multiply_by_chunks, prepare(row, rows, channel) some time before, so that what finish reads or
// writes can be asked for.
template <class T, class Prepare, class Finish>
inline void multiply(const GemmParams& p, const GemmBlock& block, const Prepare& prepare,
                     const Finish& finish) {
#if defined(TAUT_BF16_TILES)
  if constexpr (kByTiles<T>) return multiply_bf16_by_tiles(p, block, prepare, finish);
#endif
  multiply_block<T>(p, block, prepare, finish);
}

// The bias of n channels; zero where there is none.
template <class T>
inline Vec bias_of(const GemmParams& p, int64_t channel, int n) {
  if (!p.bias) return Vec::zero();
  return p.bias_is_f32 ? load(static_cast<const float*>(p.bias) + channel, n)
                       : load(static_cast<const T*>(p.bias) + channel, n);
}

template <class Function, class T>
void linear(const GemmParams& p, const GemmBlock& block) {
  T* out = static_cast<T*>(p.out);
  multiply<T>(
      p, block,
      [&](int64_t row, int64_t rows, int64_t channel) __attribute__((always_inline)) {
        // Tiles were faster without.
        if constexpr (!kByTiles<T>)
          prefetch_part<Access::write>(out, sizeof(T), p.out_features, row, rows, channel, kPanel);
      },
      [&](const float* sums, int64_t stride, int64_t row, int64_t rows, int64_t channel,
          int64_t channels) {
        for_columns(channels, [&](int64_t c, int n) {
          const Vec bias = bias_of<T>(p, channel + c, n);
          for (int64_t r = 0; r < rows; ++r)
            store(Function::apply(Vec::load(sums + r * stride + c) + bias),
                  out + (row + r) * p.out_features + channel + c, n);
        });
      });
}

template <class T>
void linear(const GemmParams& p, const GemmBlock& block) {
  with_activation<T>(p.activation, [&](auto function) { linear<decltype(function), T>(p, block); });
}

template <class T>
void sums_with_residual(const GemmParams& p, const GemmBlock& block, float* out) {
  const T* residual = static_cast<const T*>(p.residual);
  const int64_t out_stride = p.sums_stride();
  multiply<T>(
      p, block,
      [&](int64_t row, int64_t rows, int64_t channel) __attribute__((always_inline)) {
        prefetch_part<Access::read>(residual, sizeof(T), p.residual_stride, row, rows, channel,
                                    kPanel);
      },
      [&](const float* sums, int64_t stride, int64_t row, int64_t rows, int64_t channel,
          int64_t channels) {
        for_columns(channels, [&](int64_t c, int n) {
          const Vec bias = bias_of<T>(p, channel + c, n);
          for (int64_t r = 0; r < rows; ++r) {
            const Vec sum = Vec::load(sums + r * stride + c) + bias;
            const T* to_add = residual + (row + r) * p.residual_stride + channel + c;
            store(sum + load(to_add, n),
                  out + (row + r - block.row_begin) * out_stride + channel + c, n);
          }
        });
      });
}

template <class T>
void norm(const GemmParams& p, int64_t begin, int64_t end, const float* sums) {
  const int64_t columns = p.out_features;
  for (int64_t r = begin; r < end; ++r, sums += p.sums_stride()) {
    const Vec total = lane_sums(columns, [&](int64_t c, int n) { return load(sums + c, n); });
    write_normalized(sums, columns, moments_of(sums, columns, total, false, p.eps),
                     static_cast<const T*>(p.weight), static_cast<const T*>(p.norm_bias),
                     static_cast<T*>(p.out) + r * columns);
  }
}

}  // namespace

void gemm_linear_f32(const GemmParams& p, const GemmBlock& block) { linear<float>(p, block); }
void gemm_linear_bf16(const GemmParams& p, const GemmBlock& block) { linear<bf16>(p, block); }
void gemm_linear_f16(const GemmParams& p, const GemmBlock& block) { linear<f16>(p, block); }
void gemm_sums_f32(const GemmParams& p, const GemmBlock& block, float* sums) {
  sums_with_residual<float>(p, block, sums);
}
void gemm_sums_bf16(const GemmParams& p, const GemmBlock& block, float* sums) {
  sums_with_residual<bf16>(p, block, sums);
}
void gemm_sums_f16(const GemmParams& p, const GemmBlock& block, float* sums) {
  sums_with_residual<f16>(p, block, sums);
}
void gemm_norm_f32(const GemmParams& p, int64_t begin, int64_t end, const float* sums) {
  norm<float>(p, begin, end, sums);
}
void gemm_norm_bf16(const GemmParams& p, int64_t begin, int64_t end, const float* sums) {
  norm<bf16>(p, begin, end, sums);
}
void gemm_norm_f16(const GemmParams& p, int64_t begin, int64_t end, const float* sums) {
  norm<f16>(p, begin, end, sums);
}

}  // namespace TAUT_ISA
}  // namespace taut
