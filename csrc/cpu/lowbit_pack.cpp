// The order of codes that the kernels read, and back: a permutation of bits, described in
// `pack_lowbit`, the same for every instruction set.
#include <cstring>

#include "cpu/gemm_tasks.h"
#include "cpu/lowbit_arguments.h"

namespace taut {
namespace {

// Code k of a row in the logical packing: a little-endian string of bits.
class BitString {
 public:
  BitString(int64_t bits, int64_t columns) : bits_(bits), bytes_(divide_up(columns * bits, 8)) {}
  int64_t bytes() const { return bytes_; }
  uint8_t get(const uint8_t* row, int64_t k) const {
    const int64_t bit = bits_ * k, byte = bit / 8;
    const unsigned high = byte + 1 < bytes_ ? row[byte + 1] : 0;
    return static_cast<uint8_t>((row[byte] | high << 8) >> (bit % 8) & ((1u << bits_) - 1));
  }
  // Where the bits hold 0.
  void set(uint8_t* row, int64_t k, unsigned code) const {
    const int64_t bit = bits_ * k, byte = bit / 8;
    const unsigned shifted = code << (bit % 8);
    row[byte] = static_cast<uint8_t>(row[byte] | shifted);
    if (shifted >> 8) row[byte + 1] = static_cast<uint8_t>(row[byte + 1] | shifted >> 8);
  }

 private:
  int64_t bits_, bytes_;
};

// Where code (channel, k) of a panel lies, from the panel's first byte on.
struct PackedPlace {
  int64_t low, top;  // bytes; top is for 3 bits only
  int low_shift, top_shift;

  PackedPlace(int64_t bits, int64_t channel, int64_t k) {
    const int64_t block = k / kLowbitBlock * 2 * bits, quad = k % kLowbitBlock / 4;
    const int64_t low_bits = bits == 3 ? 2 : bits, quads = 8 / low_bits;
    const auto byte = [&](int64_t row) {
      return ((block + row) * kLowbitPanel + channel) * 4 + k % 4;
    };
    low = byte(quad / quads);
    low_shift = static_cast<int>(low_bits * (quad % quads));
    top = byte(4 + quad / 8);
    top_shift = static_cast<int>(quad % 8);
  }
};

Tensor pack_lowbit(const Tensor& codes, int64_t bits, int64_t in_features) {
  const char* op = "pack_lowbit";
  check_cpu(codes, op, "codes");
  check_width(bits, op);
  check(in_features > 0 && in_features < (int64_t{1} << 40), op,
        "in_features must be at least 1, got ", in_features);
  const BitString string(bits, in_features);
  check_dtype(codes, ScalarType::Byte, op, "codes");
  if (codes.dim() != 2 || codes.size(0) < 1 || codes.size(1) != string.bytes())
    check(false, op, "codes must be (out_features, ", string.bytes(), "), got ", shape_of(codes));
  const int64_t channels = codes.size(0);
  const int64_t panels = divide_up(channels, kLowbitPanel);
  const int64_t blocks = divide_up(in_features, kLowbitBlock);
  Tensor packed = empty_cpu({panels, blocks, 2 * bits, kLowbitPanel, 4}, ScalarType::Byte);
  const int64_t panel_bytes = blocks * 2 * bits * kLowbitPanel * 4;
  const uint8_t* from = static_cast<const uint8_t*>(codes.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const int64_t row_stride = codes.stride(0), byte_stride = codes.stride(1);
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> row(static_cast<size_t>(string.bytes()));
    for (int64_t panel = begin; panel < end; ++panel) {
      uint8_t* out = to + panel * panel_bytes;
      std::memset(out, 0, static_cast<size_t>(panel_bytes));
      for (int64_t n = 0; n < kLowbitPanel; ++n) {
        const int64_t channel = panel * kLowbitPanel + n;
        for (int64_t i = 0; channel < channels && i < string.bytes(); ++i)
          row[static_cast<size_t>(i)] = from[channel * row_stride + i * byte_stride];
        for (int64_t k = 0; k < blocks * kLowbitBlock; ++k) {
          const bool inside = channel < channels && k < in_features;
          const unsigned code = inside ? string.get(row.data(), k) : 1u << (bits - 1);
          const PackedPlace place(bits, n, k);
          const unsigned low = bits == 3 ? code & 3 : code;
          out[place.low] = static_cast<uint8_t>(out[place.low] | low << place.low_shift);
          if (bits == 3)
            out[place.top] = static_cast<uint8_t>(out[place.top] | (code >> 2) << place.top_shift);
        }
      }
    }
  });
  return packed;
}

Tensor unpack_lowbit(const Tensor& packed, int64_t bits, int64_t channels, int64_t in_features) {
  const char* op = "unpack_lowbit";
  check_packed_lowbit(packed, bits, channels, in_features, op);
  const BitString string(bits, in_features);
  const int64_t panel_bytes = divide_up(in_features, kLowbitBlock) * 2 * bits * kLowbitPanel * 4;
  Tensor codes = empty_cpu({channels, string.bytes()}, ScalarType::Byte);
  fill_zero(codes);
  const uint8_t* from = static_cast<const uint8_t*>(packed.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  torch::stable::parallel_for(0, channels, kLowbitPanel, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const uint8_t* panel = from + channel / kLowbitPanel * panel_bytes;
      for (int64_t k = 0; k < in_features; ++k) {
        const PackedPlace place(bits, channel % kLowbitPanel, k);
        const unsigned mask = bits == 3 ? 3 : (1u << bits) - 1;
        unsigned code = panel[place.low] >> place.low_shift & mask;
        if (bits == 3) code |= (panel[place.top] >> place.top_shift & 1u) << 2;
        string.set(to + channel * string.bytes(), k, code);
      }
    }
  });
  return codes;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("pack_lowbit", TORCH_BOX(&taut::pack_lowbit));
  m.impl("unpack_lowbit", TORCH_BOX(&taut::unpack_lowbit));
}
