// Parameters and kernels of the linear layers over low-bit weights on the CPU.
//
// Two products share everything around them. Integer activations: rows of x are staged as int8 in
// the order the product reads them, sums are int32, and each group of input features ends in one
// fp32 multiply-add. Floating-point activations: codes are expanded to values, 64 x 64 at a time.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/activation.h"
#include "common/types.h"
#include "cpu/dispatch.h"
#include "cpu/panels.h"

namespace taut {

constexpr int64_t kLowbitPanel = 64;     // output channels of a panel
constexpr int64_t kLowbitBlock = 64;     // input features of a block of a panel
constexpr int64_t kLowbitUnit = 32;      // groups are whole units of so many input features
constexpr int64_t kMaxLowbitRows = 256;  // most rows of x that one kernel call may be given
constexpr int64_t kIntegerBlock = 32;    // rows and channels of a block of tiles
// Fewer rows leave most of a tile empty. The vector instructions give the same sums.
constexpr int64_t kFewestTileRows = 17;

enum class Element : int { f32, bf16, f16, i8 };

inline int64_t size_of(Element type) { return type == Element::f32 ? 4 : 2; }

// Calls body with a value of the storage type.
template <class Body>
inline void with_element(Element type, const Body& body) {
  switch (type) {
    case Element::bf16: return body(bf16{});
    case Element::f16: return body(f16{});
    default: return body(float{});
  }
}

// Calls body(constant) where the constant's value is `bits`.
template <class Body>
inline void with_width(int64_t bits, const Body& body) {
  switch (bits) {
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    default: return body(std::integral_constant<int, 8>{});
  }
}

// Rows are contiguous; strides between rows in elements. A null pointer means "not given".
struct LowbitParams {
  const void* x;
  const float* x_scale;  // (rows, x_groups), with x of int8
  const uint8_t* packed;
  const float* scale;       // (out_features, groups)
  const float* zero_point;  // the same shape
  const float* codebook;    // one table, or one per channel
  const void* bias;
  const void* residual;
  const void* weight;
  const void* norm_bias;
  const void* quant_weight;  // in place of weight and norm_bias for what is quantized
  const void* quant_bias;
  void* out;                                           // (rows, out_features), contiguous
  int8_t* q;                                           // (rows, out_features)
  float* q_scale;                                      // (rows, groups of q)
  Element x_type, bias_type, residual_type, out_type;  // those of the norm: like residual
  Activation activation;
  bool codebook_per_channel;
  bool norm;
  bool split_x;        // codes of x are staged in 16 bits: see lowbit_shorts.h
  bool in_place;       // x of int8 is read where it lies, not staged
  bool second_affine;  // quant_weight or quant_bias is given
  int64_t x_bits;      // floating-point x is quantized to so many; 0: it stays as it is
  int64_t bits, q_bits;
  float x_zero_point, eps;
  int64_t x_stride, x_scale_stride, residual_stride;
  int64_t in_features, out_features;
  int64_t group_units, groups;  // of the weight
  int64_t x_groups;             // 1 or groups
  int64_t q_group_size;         // 0: the row
  int64_t panels_together;      // that tiles multiply while a block of rows stays in L1

  bool integer() const { return x_bits || x_type == Element::i8; }
  // The zero point of all channels where none is given.
  int32_t common_zero() const { return 1 << (bits - 1); }
  int64_t panels() const { return (out_features + kLowbitPanel - 1) / kLowbitPanel; }
  int64_t blocks() const { return (in_features + kLowbitBlock - 1) / kLowbitBlock; }
  int64_t units() const { return (in_features + kLowbitUnit - 1) / kLowbitUnit; }
  // Of a panel's values that are expanded together: a group of bf16, or a block of fp32.
  int64_t values_bytes() const {
    const int64_t features = x_type == Element::bf16 ? group_units * kLowbitUnit : kLowbitBlock;
    return features * kLowbitPanel * (x_type == Element::bf16 ? 2 : 4);
  }
  // Of a panel as codes of 8 bits, and floats of what its channels need: see prepare_constants.
  int64_t code_bytes() const { return blocks() * kLowbitBlock * kLowbitPanel; }
  int64_t constants_size() const { return kLowbitPanel * (1 + 4 * groups); }
  int64_t panel_bytes() const { return blocks() * kLowbitBlock * kLowbitPanel * bits / 8; }
  // From one row of codes or of fp32 sums to the next. Staged, one cache line more than whole
  // blocks, so that the rows of a tile do not compete for the same cache sets.
  int64_t staged_stride() const { return row_codes() * (split_x ? 2 : 1) + 64; }
  int64_t codes_stride() const { return in_place ? x_stride : staged_stride(); }
  int64_t row_codes() const { return blocks() * kLowbitBlock; }  // in whole blocks
  int64_t sums_stride() const { return panels() * kLowbitPanel + 16; }
};

// Rows of x as the product reads them, row after row.
struct LowbitRows {
  int8_t* codes;  // codes_stride() apart; 0 behind in_features. In place: x, not to be written to
  float* scale;   // (rows, x_groups)
  int32_t* sum;   // (rows, groups), sums of the codes, times common_zero() without zero points
  float* wide;    // (rows, in_features): f16 that stays floating point

  // The rows from `row` on.
  LowbitRows from(const LowbitParams& p, int64_t row) const {
    if (!p.integer())
      return {nullptr, nullptr, nullptr, wide ? wide + row * p.in_features : nullptr};
    return {codes + row * p.codes_stride(), scale + row * p.x_groups, sum + row * p.groups,
            nullptr};
  }
};

// Memory of one worker.
struct LowbitScratch {
  float* constants;  // constants_size() for each of panels_together
  float* codebook;   // (64, 2^bits): the tables of a panel
  int8_t* ones;      // staged_stride(): a row of ones, 0 behind in_features
  float* sums;       // (kMaxLowbitRows, 64), where x stays floating point
  void* values;      // values_bytes(), likewise
  uint8_t* codes;    // panels_together expanded to 8 bits, for tiles and 3 bits
};

// Rows [row_begin, row_end) of x times panels [panel_begin, panel_end).
struct LowbitBlock {
  int64_t row_begin, row_end;
  int64_t panel_begin, panel_end;
};

// Stages rows [begin, end); `rows` belongs to row `begin`.
using LowbitStage = void(const LowbitParams&, int64_t begin, int64_t end, const LowbitRows& rows);
TAUT_DECLARE_KERNEL(lowbit_stage, LowbitStage)

// activation(x W^T + bias) + residual within the block, to p.out or, where `sums` is not null, to
// sums. `rows` and `sums` belong to row_begin. True where tiles did it.
using LowbitMultiply = bool(const LowbitParams&, const LowbitBlock&, const LowbitRows& rows,
                            float* sums, const LowbitScratch&);
TAUT_DECLARE_KERNEL(lowbit_multiply, LowbitMultiply)

// LayerNorm or quantization, or both, of rows [begin, end); `sums` belongs to row `begin` and is
// overwritten.
using LowbitFinish = void(const LowbitParams&, int64_t begin, int64_t end, float* sums);
TAUT_DECLARE_KERNEL(lowbit_finish, LowbitFinish)

}  // namespace taut
