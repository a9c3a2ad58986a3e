// Storage types of half-precision tensors. Arithmetic is always done in wider types.
#pragma once
#include <cstdint>

namespace taut {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// The type of a tensor that a kernel learns at run time.
enum class FloatType : int { f32, bf16, f16 };

}  // namespace taut
