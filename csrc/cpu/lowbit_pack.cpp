// The order of codes that the kernels read, and back: a permutation of bits, described in
// `pack_lowbit`, the same for every instruction set.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/gemm_tasks.h"
#include "cpu/lowbit_arguments.h"

namespace taut {
namespace {

// A row of the logical packing, a little-endian string of bits, to a byte per code, and back; so
// many codes at a time fill whole bytes.
constexpr int64_t kCodes = 8;

template <int Bits>
void read_codes(const uint8_t* row, int64_t bytes, int64_t count, uint8_t* codes) {
  for (int64_t k = 0; k < count; k += kCodes, row += Bits, bytes -= Bits) {
    uint64_t word = 0;
    std::memcpy(&word, row, static_cast<size_t>(std::min<int64_t>(Bits, bytes)));
    for (int64_t i = 0; i < kCodes; ++i)
      codes[k + i] = static_cast<uint8_t>(word >> (Bits * i) & ((1u << Bits) - 1));
  }
}

template <int Bits>
void write_codes(const uint8_t* codes, int64_t count, uint8_t* row, int64_t bytes) {
  for (int64_t k = 0; k < count; k += kCodes, row += Bits, bytes -= Bits) {
    uint64_t word = 0;
    for (int64_t i = 0; i < kCodes; ++i) word |= uint64_t{codes[k + i]} << (Bits * i);
    std::memcpy(row, &word, static_cast<size_t>(std::min<int64_t>(Bits, bytes)));
  }
}

// Where a quad, the codes of four input features of a channel, lies in a panel.
template <int Bits>
struct PackedQuad {
  static constexpr int kLowBits = Bits == 3 ? 2 : Bits, kSharing = 8 / kLowBits;
  static constexpr uint32_t kEach = 0x01010101u;
  int64_t low, top;  // bytes; top is for 3 bits only
  int low_shift, top_shift;

  PackedQuad(int64_t channel, int64_t k) {
    const int64_t block = k / kLowbitBlock * 2 * Bits, quad = k % kLowbitBlock / 4;
    const auto place = [&](int64_t row) { return ((block + row) * kLowbitPanel + channel) * 4; };
    low = place(quad / kSharing);
    low_shift = static_cast<int>(kLowBits * (quad % kSharing));
    top = place(4 + quad / 8);
    top_shift = static_cast<int>(quad % 8);
  }
  // Where all bits are 0.
  void set(uint8_t* panel, uint32_t codes) const {
    add(panel + low, (codes & kEach * ((1u << kLowBits) - 1)) << low_shift);
    if constexpr (Bits == 3) add(panel + top, (codes >> 2 & kEach) << top_shift);
  }
  uint32_t get(const uint8_t* panel) const {
    uint32_t codes = load(panel + low) >> low_shift & kEach * ((1u << kLowBits) - 1);
    if constexpr (Bits == 3) codes |= (load(panel + top) >> top_shift & kEach) << 2;
    return codes;
  }

 private:
  static uint32_t load(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    return word;
  }
  static void add(uint8_t* to, uint32_t bits) {
    const uint32_t word = load(to) | bits;
    std::memcpy(to, &word, 4);
  }
};

Tensor pack_lowbit(const Tensor& codes, int64_t bits, int64_t in_features) {
  const char* op = "pack_lowbit";
  check_cpu(codes, op, "codes");
  check_width(bits, op);
  check(in_features > 0 && in_features < (int64_t{1} << 40), op,
        "in_features must be at least 1, got ", in_features);
  const int64_t bytes = divide_up(in_features * bits, 8);
  check_dtype(codes, ScalarType::Byte, op, "codes");
  if (codes.dim() != 2 || codes.size(0) < 1 || codes.size(1) != bytes)
    check(false, op, "codes must be (out_features, ", bytes, "), got ", shape_of(codes));
  const int64_t channels = codes.size(0);
  const int64_t panels = divide_up(channels, kLowbitPanel);
  const int64_t blocks = divide_up(in_features, kLowbitBlock);
  Tensor packed = empty_cpu({panels, blocks, 2 * bits, kLowbitPanel, 4}, ScalarType::Byte);
  const int64_t panel_bytes = blocks * 2 * bits * kLowbitPanel * 4;
  const uint8_t* from = static_cast<const uint8_t*>(codes.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const int64_t row_stride = codes.stride(0), byte_stride = codes.stride(1);
  with_width(bits, [&](auto width) {
    constexpr int kBits = decltype(width)::value;
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      const int64_t features = blocks * kLowbitBlock;
      std::vector<uint8_t> row(static_cast<size_t>(bytes));
      std::vector<uint8_t> spread(static_cast<size_t>(features), 1 << (kBits - 1));
      for (int64_t panel = begin; panel < end; ++panel) {
        uint8_t* out = to + panel * panel_bytes;
        std::memset(out, 0, static_cast<size_t>(panel_bytes));
        for (int64_t n = 0; n < kLowbitPanel; ++n) {
          const int64_t channel = panel * kLowbitPanel + n;
          if (channel == channels) std::fill(spread.begin(), spread.end(), 1 << (kBits - 1));
          if (channel < channels) {
            const uint8_t* given = from + channel * row_stride;
            for (int64_t i = 0; byte_stride != 1 && i < bytes; ++i)
              row[static_cast<size_t>(i)] = given[i * byte_stride];
            read_codes<kBits>(byte_stride == 1 ? given : row.data(), bytes, in_features,
                              spread.data());
            std::fill(spread.begin() + in_features, spread.end(), 1 << (kBits - 1));
          }
          for (int64_t k = 0; k < features; k += 4) {
            uint32_t quad;
            std::memcpy(&quad, spread.data() + k, 4);
            PackedQuad<kBits>(n, k).set(out, quad);
          }
        }
      }
    });
  });
  return packed;
}

Tensor unpack_lowbit(const Tensor& packed, int64_t bits, int64_t channels, int64_t in_features) {
  const char* op = "unpack_lowbit";
  check_packed_lowbit(packed, bits, channels, in_features, op);
  const int64_t bytes = divide_up(in_features * bits, 8);
  const int64_t features = divide_up(in_features, kLowbitBlock) * kLowbitBlock;
  const int64_t panel_bytes = features * bits * kLowbitPanel / 8;
  Tensor codes = empty_cpu({channels, bytes}, ScalarType::Byte);
  const uint8_t* from = static_cast<const uint8_t*>(packed.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  with_width(bits, [&](auto width) {
    constexpr int kBits = decltype(width)::value;
    torch::stable::parallel_for(0, channels, kLowbitPanel, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> spread(static_cast<size_t>(features));
      for (int64_t channel = begin; channel < end; ++channel) {
        const uint8_t* panel = from + channel / kLowbitPanel * panel_bytes;
        for (int64_t k = 0; k < features; k += 4) {
          const uint32_t quad = PackedQuad<kBits>(channel % kLowbitPanel, k).get(panel);
          std::memcpy(spread.data() + k, &quad, 4);
        }
        std::fill(spread.begin() + in_features, spread.end(), 0);  // unused bits of the last byte
        write_codes<kBits>(spread.data(), in_features, to + channel * bytes, bytes);
      }
    });
  });
  return codes;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("pack_lowbit", TORCH_BOX(&taut::pack_lowbit));
  m.impl("unpack_lowbit", TORCH_BOX(&taut::unpack_lowbit));
}
