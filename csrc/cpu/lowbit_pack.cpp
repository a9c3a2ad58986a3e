// The order of codes that the kernels read, and back: a permutation of bits, described in
// `pack_lowbit`, the same for every instruction set.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/gemm_tasks.h"
#include "cpu/lowbit_arguments.h"
#include "cpu/transpose_words.h"

namespace taut {
namespace {

// A row of the logical packing, a little-endian string of bits, to a byte per code, and back; so
// many codes at a time fill whole bytes.
constexpr int64_t kCodes = 8;

// The lowest `ones` of every `of` bits.
constexpr uint64_t lowest(int ones, int of) {
  return ones == 64 ? ~uint64_t{0}
                    : ~uint64_t{0} / (~uint64_t{0} >> (64 - of)) * ((uint64_t{1} << ones) - 1);
}

// Eight codes side by side, as bytes: halves move apart, then quarters, then the codes.
template <int Bits>
uint64_t spread_codes(uint64_t x) {
  x = (x | x << 4 * (8 - Bits)) & lowest(4 * Bits, 32);
  x = (x | x << 2 * (8 - Bits)) & lowest(2 * Bits, 16);
  return (x | x << (8 - Bits)) & lowest(Bits, 8);
}
template <int Bits>
uint64_t gather_codes(uint64_t x) {
  x = (x | x >> (8 - Bits)) & lowest(2 * Bits, 16);
  x = (x | x >> 2 * (8 - Bits)) & lowest(4 * Bits, 32);
  return (x | x >> 4 * (8 - Bits)) & lowest(8 * Bits, 64);
}

// At most `bytes`. A call of memcpy for a number unknown would cost more than the rest.
template <int Count>
void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes >= Count)
    std::memcpy(to, from, Count);
  else
    std::memcpy(to, from, static_cast<size_t>(bytes));
}

template <int Bits>
void read_codes(const uint8_t* row, int64_t bytes, int64_t count, uint8_t* codes) {
  for (int64_t k = 0; k < count; k += kCodes, row += Bits, bytes -= Bits) {
    uint64_t word = 0;
    copy_bytes<Bits>(&word, row, bytes);
    word = spread_codes<Bits>(word);
    std::memcpy(codes + k, &word, kCodes);
  }
}

template <int Bits>
void write_codes(const uint8_t* codes, int64_t count, uint8_t* row, int64_t bytes) {
  for (int64_t k = 0; k < count; k += kCodes, row += Bits, bytes -= Bits) {
    uint64_t word;
    std::memcpy(&word, codes + k, kCodes);
    word = gather_codes<Bits>(word);
    copy_bytes<Bits>(row, &word, bytes);
  }
}

// A block of a channel, 64 codes, to its words in a panel, and back. A word has four codes, a quad,
// side by side in bytes, and as many quads one above the other as fit; of 3 bits the upper one lies
// in words of its own.
template <int Bits>
struct Block {
  static constexpr int kQuads = kLowbitBlock / 4, kWords = 2 * Bits;
  static constexpr int kLowBits = Bits == 3 ? 2 : Bits, kLowWords = 2 * kLowBits;
  static constexpr int kSharing = kQuads / kLowWords, kTopSharing = 8;
  static constexpr uint32_t kEach = 0x01010101u, kLow = kEach * ((1u << kLowBits) - 1);

  static void pack(const uint8_t* codes, uint32_t* words) {
    uint32_t quads[kQuads];
    std::memcpy(quads, codes, sizeof(quads));
    uint32_t made[kWords] = {};  // in registers, once unrolled
#pragma GCC unroll 16
    for (int q = 0; q < kQuads; ++q) {
      made[q / kSharing] |= (quads[q] & kLow) << kLowBits * (q % kSharing);
      if (Bits == 3)
        made[kLowWords + q / kTopSharing] |= (quads[q] >> 2 & kEach) << q % kTopSharing;
    }
    std::memcpy(words, made, sizeof(made));
  }
  static void unpack(const uint32_t* words, uint8_t* codes) {
    uint32_t quads[kQuads];
    for (int q = 0; q < kQuads; ++q) {
      quads[q] = words[q / kSharing] >> kLowBits * (q % kSharing) & kLow;
      if (Bits == 3)
        quads[q] |= (words[kLowWords + q / kTopSharing] >> q % kTopSharing & kEach) << 2;
    }
    std::memcpy(codes, quads, sizeof(quads));
  }
};

// A panel by channels, and how it lies in a packed weight: transposed, by words.
template <int Bits>
class Panel {
 public:
  explicit Panel(int64_t blocks)
      : words_(blocks * Block<Bits>::kWords), data_(static_cast<size_t>(kLowbitPanel * words_)) {}

  uint32_t* block(int64_t channel, int64_t index) {
    return data_.data() + channel * words_ + index * Block<Bits>::kWords;
  }
  void write(uint8_t* packed, int64_t panel) {
    transpose_(data_.data(), 4 * words_, packed + panel * bytes(), kRowBytes, kLowbitPanel, words_);
  }
  void read(const uint8_t* packed, int64_t panel) {
    transpose_(packed + panel * bytes(), kRowBytes, data_.data(), 4 * words_, words_, kLowbitPanel);
  }

 private:
  static constexpr int64_t kRowBytes = 4 * kLowbitPanel;
  int64_t bytes() const { return words_ * kRowBytes; }

  int64_t words_;
  std::vector<uint32_t> data_;
  TransposeWords* transpose_ = TAUT_KERNEL(transpose_words);
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
  const uint8_t* from = static_cast<const uint8_t*>(codes.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const int64_t row_stride = codes.stride(0), byte_stride = codes.stride(1);
  with_width(bits, [&](auto width) {
    constexpr int kBits = decltype(width)::value;
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      const int64_t features = blocks * kLowbitBlock;
      std::vector<uint8_t> row(static_cast<size_t>(bytes));
      std::vector<uint8_t> spread(static_cast<size_t>(features), 1 << (kBits - 1));
      Panel<kBits> columns(blocks);
      for (int64_t panel = begin; panel < end; ++panel) {
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
          for (int64_t b = 0; b < blocks; ++b)
            Block<kBits>::pack(spread.data() + b * kLowbitBlock, columns.block(n, b));
        }
        columns.write(to, panel);
      }
    });
  });
  return packed;
}

Tensor unpack_lowbit(const Tensor& packed, int64_t bits, int64_t channels, int64_t in_features) {
  const char* op = "unpack_lowbit";
  check_packed_lowbit(packed, bits, channels, in_features, op);
  const int64_t bytes = divide_up(in_features * bits, 8);
  const int64_t blocks = divide_up(in_features, kLowbitBlock);
  Tensor codes = empty_cpu({channels, bytes}, ScalarType::Byte);
  const uint8_t* from = static_cast<const uint8_t*>(packed.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  with_width(bits, [&](auto width) {
    constexpr int kBits = decltype(width)::value;
    const int64_t panels = divide_up(channels, kLowbitPanel);
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      const int64_t features = blocks * kLowbitBlock;
      std::vector<uint8_t> spread(static_cast<size_t>(features));
      Panel<kBits> columns(blocks);
      for (int64_t panel = begin; panel < end; ++panel) {
        columns.read(from, panel);
        const int64_t first = panel * kLowbitPanel;
        for (int64_t n = 0; n < std::min(kLowbitPanel, channels - first); ++n) {
          for (int64_t b = 0; b < blocks; ++b)
            Block<kBits>::unpack(columns.block(n, b), spread.data() + b * kLowbitBlock);
          std::fill(spread.begin() + in_features, spread.end(), 0);  // unused bits of the last byte
          write_codes<kBits>(spread.data(), in_features, to + (first + n) * bytes, bytes);
        }
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
