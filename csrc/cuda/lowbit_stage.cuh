// What products of integer activations take from shared memory: 128 input features of rows of x and
// of panels of the weight.
#pragma once
#include "cuda/lowbit_codes.cuh"
#include "cuda/lowbit_gemm_params.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/swizzle.h"

namespace taut {

constexpr int kStageFeatures = 128;
constexpr int kStageBlocks = kStageFeatures / kLowbitBlock;
constexpr int kCodeStride = code_stride(kLowbitPanel);

// Rows of x in 128 bytes each, swizzled; behind them the packed words of a panel's blocks, row
// after row, then those of the next panel.
template <class Tile, int bits>
struct LowbitStage {
  static constexpr int kRowBytes = Tile::kRows * kStageFeatures;
  static constexpr int kPanelRows = kStageBlocks * code_rows(bits);  // contiguous in a panel
  static constexpr int kPanelWords = kPanelRows * kCodeStride;
  static constexpr int kBytes = kRowBytes + 4 * Tile::kPanels * kPanelWords;

  static_assert(kRowBytes % (16 * Tile::kThreads) == 0 && Tile::kThreads % 64 == 0,
                "a thread copies the same piece of rows whose swizzle is the same");

  // Stage s under way to `place`. Features and blocks that there are not become zeros; rows and
  // panels that there are not have no results, so the last ones stand for them.
  __device__ __forceinline__ static void load(const LowbitParams& p, int64_t first_row,
                                              int first_panel, int s, uint8_t* place, int thread) {
    const int feature = s * kStageFeatures + thread % 8 * 16;
    const int bytes = min(max(p.in_features - feature, 0), 16);
    const int8_t* x = static_cast<const int8_t*>(p.x) + (bytes > 0 ? feature : 0);
    uint8_t* piece = place + ptx::swizzle_128(16 * thread);
#pragma unroll
    for (int n = 0; n < kRowBytes / 16 / Tile::kThreads; ++n) {
      const int64_t row = first_row + n * (Tile::kThreads / 8) + thread / 8;
      ptx::cp_async<16>(piece + 16 * n * Tile::kThreads,
                        x + (row < p.rows ? row : p.rows - 1) * p.x_stride, bytes);
    }
    const int last_panel = (p.out_features - 1) / kLowbitPanel;
    const int rows = (p.in_features + kLowbitBlock - 1) / kLowbitBlock * code_rows(bits);
    for_pieces<Tile::kPanels * kPanelRows * 16, Tile::kThreads>(thread, [&](int i) {
      const int64_t panel = min(first_panel + i / 16 / kPanelRows, last_panel);
      const int row = s * kPanelRows + i / 16 % kPanelRows;
      const int64_t offset = (panel * rows + min(row, rows - 1)) * 256 + i % 16 * 16;
      ptx::cp_async<16>(place + kRowBytes + i / 16 * 4 * kCodeStride + i % 16 * 16,
                        p.packed + offset, row < rows ? 16 : 0);
    });
  }
};

}  // namespace taut
