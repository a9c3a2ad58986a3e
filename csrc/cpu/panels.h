// How many panels of a weight are multiplied together, for AMX.
#pragma once
#include <cstdint>

namespace taut {

constexpr int64_t kMostPanels = 16;

// Panels of so many bytes that stay in L2, in a quarter of its 2 MiB, while all rows of a call pass
// by. Each block of rows then stays in L1 until they have passed.
inline int64_t panels_together(int64_t panel_bytes) {
  const int64_t panels = (1 << 19) / panel_bytes;
  return panels < 1 ? 1 : panels < kMostPanels ? panels : kMostPanels;
}

}  // namespace taut
