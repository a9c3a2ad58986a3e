// Checks of the options of the quantize ops, the same on every device.
#pragma once
#include <string>

#include "common/check.h"
#include "common/quantize_grid.h"

namespace taut {

inline void check_activation_bits(int64_t bits, const char* op) {
  check(bits == 2 || bits == 3 || bits == 4 || bits == 8, op,
        "bits must be one of 2, 3, 4, 8, got ", bits);
}

inline QuantizeGrid parse_grid(const std::string& grid, const char* op) {
  if (grid == "absmax") return QuantizeGrid::absmax;
  if (grid == "full_range") return QuantizeGrid::full_range;
  check(grid == "midrise", op, "grid must be one of absmax, full_range, midrise, got '", grid, "'");
  return QuantizeGrid::midrise;
}

}  // namespace taut
