// Which tile serves which shape. Sums are whole numbers, so that this touches no result.
#pragma once
#include <cstdint>

#include "cuda/binary_gemm_params.h"

namespace taut {

enum class BinaryTiles : int { rows_32, rows_128 };

constexpr int kBinaryTileChannels = 128;

// Tiles of 128 rows read the fewest words per product, but only where there are enough of them to
// fill a GPU (H100 and H200: 132 multiprocessors). On Hopper they are wgmma's: its peak is higher,
// and it takes rows of x as they lie in shared memory. Small tiles stay with mma.sync: a
// warpgroup's product has 64 channels in any case, and its loads would feed few rows. Predicted,
// not measured; bench/probe_binary_sm90a.cu tells the two peaks.
constexpr BinaryTiles choose_binary_tiles(int64_t rows, int32_t out_features) {
  constexpr int64_t kFull = 132;
  const int64_t across = (out_features + kBinaryTileChannels - 1) / kBinaryTileChannels;
  return (rows + 127) / 128 * across < kFull ? BinaryTiles::rows_32 : BinaryTiles::rows_128;
}

}  // namespace taut
