// Grids of activations, as reference/quantize.py defines them, for the launchers.
#pragma once
#include <cstdint>

namespace taut {

enum class QuantizeGrid : int { absmax, full_range, midrise };
constexpr int64_t kHadamard = 128;

// The step of the midrise grid for a row whose rms is 1: a standard normal is clipped where the
// squared error is least.
inline float midrise_step(int64_t bits) {
  const double clip = bits == 2 ? 1.49353 : bits == 3 ? 2.05107 : bits == 4 ? 2.51393 : 3.88494;
  return static_cast<float>(2 * clip / ((1 << bits) - 1));
}

}  // namespace taut
