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

  // Stage s under way to `place`. Rows, features, panels and blocks that there are not become
  // zeros; they meet zeros only.
  __device__ __forceinline__ static void load(const LowbitParams& p, int64_t first_row,
                                              int first_panel, int s, uint8_t* place) {
    const int thread = static_cast<int>(threadIdx.x);
    const int8_t* x = static_cast<const int8_t*>(p.x);
    for_pieces<kRowBytes / 16, Tile::kThreads>(thread, [&](int i) {
      const int64_t row = first_row + i / 8;
      const int feature = s * kStageFeatures + i % 8 * 16;
      const int bytes = row < p.rows ? min(max(p.in_features - feature, 0), 16) : 0;
      ptx::cp_async<16>(place + ptx::swizzle_128(16 * i),
                        bytes > 0 ? x + row * p.x_stride + feature : x, bytes);
    });
    const int panels = (p.out_features + kLowbitPanel - 1) / kLowbitPanel;
    const int rows = (p.in_features + kLowbitBlock - 1) / kLowbitBlock * code_rows(bits);
    for_pieces<Tile::kPanels * kPanelRows * 16, Tile::kThreads>(thread, [&](int i) {
      const int panel = first_panel + i / 16 / kPanelRows;
      const int row = s * kPanelRows + i / 16 % kPanelRows;
      const bool exists = panel < panels && row < rows;
      const int64_t offset = exists ? (int64_t{panel} * rows + row) * 256 + i % 16 * 16 : 0;
      ptx::cp_async<16>(place + kRowBytes + i / 16 * 4 * kCodeStride + i % 16 * 16,
                        p.packed + offset, exists ? 16 : 0);
    });
  }
};

}  // namespace taut
