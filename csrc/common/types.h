// Storage types of half-precision tensors. Arithmetic is always done in wider types: see cpu/isa.
#pragma once
#include <cstdint>

namespace taut {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

}  // namespace taut
