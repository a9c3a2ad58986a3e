// The matrix product of packed linear layers for many rows, without AVX-512.
//
// A tile of 6 x 16 sums reads a cache line of the weight for every 12 multiply-adds, a quarter of a
// panel's row. In the panel those lines are 256 bytes apart: they share a quarter of the sets of
// L1, so none of them is there when the next 6 rows come, and half precision is widened anew for
// each. Here 256 k of a panel are laid out once for all rows of a block, as fp32, in slices of 16
// channels:
//
//   chunk[slice][k][16]        a slice is 16 KiB and stays in L1 while all tiles of rows pass by
//
// The sums are those of multiply_by_vectors, in the same order, to the bit.
#pragma once
#include "cpu/dense_gemm_vector.h"

namespace taut {
namespace TAUT_ISA {

constexpr int64_t kChunk = 256;      // k
constexpr int64_t kChunkRows = 96;   // rows that share a chunk
constexpr int64_t kWorthChunks = 4;  // rows that make up for laying it out
constexpr int64_t kSlice = kTileVectors * Vec::kWidth;

template <class T>
inline void spread_chunk(const T* panel, int64_t steps, float* chunk) {
  for (int64_t s = 0; s < steps; ++s)
    for (int64_t c = 0; c < kPanel; c += Vec::kWidth) {
      float* out = chunk + (c / kSlice * kChunk + s * kStep<T>)*kSlice + c % kSlice;
      const T* from = panel + (s * kPanel + c) * kStep<T>;
      if constexpr (kStep<T> == 2) {
        const Pairs pairs = Pairs::load(from);
        pairs.even().store(out);
        pairs.odd().store(out + kSlice);
      } else {
        Vec::load(from).store(out);
      }
    }
}

// out (Rows, kPanel) = or += Rows rows of x times a slice.
template <int Rows>
void multiply_slice(const float* x, int64_t x_stride, const float* slice, int64_t count, bool first,
                    float* out) {
  Vec sums[Rows][kTileVectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) sums[r][v] = Vec::zero();
  for (int64_t k = 0; k < count; ++k, slice += kSlice) k_step(sums, x + k, x_stride, slice);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) {
      float* place = out + r * kPanel + v * Vec::kWidth;
      (first ? sums[r][v] : Vec::load(place) + sums[r][v]).store(place);
    }
}

// At most kChunkRows rows. Calls finish as multiply_by_vectors does, once for every panel.
template <class T, class Finish>
void multiply_by_chunks(const GemmParams& p, const GemmBlock& block, const Finish& finish) {
  static_assert(kRun<T> == kChunk, "sums are cut where those of multiply_by_vectors are");
  alignas(64) float sums[kChunkRows * kPanel];
  alignas(64) float chunk[kChunk * kPanel];
  [[maybe_unused]] alignas(64) float wide[kWidened<T> ? kChunkRows * kChunk : 1];
  const int64_t steps = (p.in_features + kStep<T> - 1) / kStep<T>;
  const int64_t rows = block.row_end - block.row_begin, tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
    for (int64_t begin = 0; begin < p.in_features; begin += kChunk) {
      const int64_t left = p.in_features - begin, count = left < kChunk ? left : kChunk;
      const int64_t filled = (count + kStep<T> - 1) / kStep<T> * kStep<T>;
      spread_chunk(
          static_cast<const T*>(p.packed) + (panel * steps + begin / kStep<T>)*kPanel * kStep<T>,
          filled / kStep<T>, chunk);
      const T* here = static_cast<const T*>(p.x) + block.row_begin * p.x_stride + begin;
      const float* x;
      int64_t x_stride = p.x_stride;
      if constexpr (kWidened<T>) {
        for (int64_t r = 0; r < rows; ++r) {
          for_columns(count, [&](int64_t k, int n) {
            store(load(here + r * p.x_stride + k, n), wide + r * kChunk + k, n);
          });
          if (count < filled) wide[r * kChunk + count] = 0.0f;
        }
        x = wide, x_stride = kChunk;
      } else {
        x = here;
      }
      for (int64_t column = 0; column < kPanel; column += kSlice)
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t row = rows * tile / tiles, end = rows * (tile + 1) / tiles;
          with_rows(end - row, [&](auto n) {
            multiply_slice<decltype(n)::value>(x + row * x_stride, x_stride,
                                               chunk + column * kChunk, filled, begin == 0,
                                               sums + row * kPanel + column);
          });
        }
    }
    const int64_t channel = panel * kPanel, left = p.out_features - channel;
    finish(sums, kPanel, block.row_begin, rows, channel, left < kPanel ? left : kPanel);
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
