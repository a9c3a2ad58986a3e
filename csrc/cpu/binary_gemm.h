// Parameters and kernels of packed signs and of linear layers over 1-bit weights on the CPU.
#pragma once
#include <cstdint>

#include "common/activation.h"
#include "common/types.h"
#include "cpu/dispatch.h"
#include "cpu/lowbit_gemm.h"

namespace taut {

constexpr int64_t kBitsPerWord = 64;

// Signs of rows of floats. Strides in elements; `threshold` may be null.
struct PackBitsParams {
  const void* x;
  const float* threshold;
  uint64_t* out;  // (rows, rails, words), contiguous
  int64_t x_stride, columns;
  int rails;
  bool at_least;  // x = threshold counts as above

  int64_t words() const { return (columns + kBitsPerWord - 1) / kBitsPerWord; }
};

using PackBitsRows = void(const PackBitsParams&, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(pack_bits_f32, PackBitsRows)
TAUT_DECLARE_KERNEL(pack_bits_bf16, PackBitsRows)
TAUT_DECLARE_KERNEL(pack_bits_f16, PackBitsRows)

// Most rows that one kernel call may be given: signs whose bits are counted, codes (up to 8
// operands a row), and rows whose bytes are multiplied.
constexpr int64_t kBinaryRows = 64;
constexpr int64_t kBinaryCodeRows = kBinaryRows / 8;
constexpr int64_t kBinaryByteRows = 256;

// Where the parts of a kernel call's memory begin, in bytes: first what is made of the rows of x,
// then a panel's columns, then fp32 rows to normalise.
struct BinaryScratch {
  int64_t columns, norm_rows, end;
};

enum class BinaryInput : int { one_rail, two_rails, codes };
enum class BinaryResult : int { floats, one_rail, two_rails, norm };

// Rows are contiguous; strides between rows in elements. A null pointer means "not given".
struct BinaryLinearParams {
  BinaryInput input;
  BinaryResult result;
  FloatType type;  // of out, residual, weight and norm_bias
  bool by_bytes;   // bytes are multiplied, not bits counted
  const void* x;   // words, or int8 codes
  int64_t x_stride, rail_stride;
  const float* x_scale;    // one per row
  const uint64_t* packed;  // (panels, words, 64)
  const float* scale;
  const float* bias;
  Activation activation;
  void* out;
  const void* residual;
  int64_t residual_stride;
  const int32_t* thresholds;  // (out_features,) or (3, out_features)
  const void* weight;
  const void* norm_bias;
  const float* bit_threshold;
  float eps;
  uint64_t* bits;  // (rows, rails, panels)
  int64_t in_features, out_features;

  int64_t words() const { return (in_features + kBitsPerWord - 1) / kBitsPerWord; }
  int64_t panels() const { return (out_features + kBitsPerWord - 1) / kBitsPerWord; }
  // From one row of x as bytes to the next: a cache line more than whole words, so that the rows of
  // a tile do not compete for the same cache sets.
  int64_t bytes_stride() const { return words() * kBitsPerWord + 64; }
  BinaryScratch scratch(int64_t rows) const {
    const int64_t staged = (rows + kIntegerBlock - 1) / kIntegerBlock * kIntegerBlock;
    const int64_t columns = by_bytes ? staged * bytes_stride() : kBinaryRows * words() * 32;
    const int64_t norm_rows = columns + words() * (by_bytes ? 64 * kBitsPerWord : 1024);
    const int64_t floats = result == BinaryResult::norm ? rows * panels() * kBitsPerWord : 0;
    return {columns, norm_rows, norm_rows + 4 * floats};
  }
};

// Rows [row_begin, row_end) of x times panels [panel_begin, panel_end), all of them for a norm.
struct BinaryBlock {
  int64_t row_begin, row_end;
  int64_t panel_begin, panel_end;
};
using BinaryLinear = void(const BinaryLinearParams&, const BinaryBlock&, void* scratch);
TAUT_DECLARE_KERNEL(binary_linear_block, BinaryLinear)

}  // namespace taut
