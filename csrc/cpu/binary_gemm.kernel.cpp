// Packing signs, and x W^T over 1-bit weights with what follows done before the sums leave L1.
//
// There are two ways to the sums. Bits are counted: a row of x is one operand per word (signs) or
// several (codes: one per bit plane); see binary_counts.h. Or bytes are multiplied; see
// binary_bytes.h. Sums are whole numbers: their order is free, and both ways give the same.
#include "cpu/binary_gemm.h"

#include "cpu/binary_bytes.h"
#include "cpu/binary_counts.h"
#include "cpu/isa/columns.h"
#include "cpu/norm_row.h"

namespace taut {
namespace TAUT_ISA {
namespace {

// body(word, bits) for each word of a row, where bit c says what compare(column, n) gives for the
// n columns from there on, as the lowest n bits.
template <class Compare, class Body>
inline void for_words(int64_t columns, const Compare& compare, const Body& body) {
  for (int64_t c = 0; c < columns; c += kWord) {
    const int64_t here = columns - c < kWord ? columns - c : kWord;
    uint64_t bits = 0;
    for_columns(here, [&](int64_t i, int n) {
      const uint64_t inside = (uint64_t{1} << n) - 1;
      bits |= (compare(c + i, n) & inside) << i;
    });
    body(c / kWord, bits);
  }
}

// Lanes that are not NaN.
inline uint64_t ordered(Vec x) {
  const Vec infinity = Vec::set(__builtin_inff());
  return lanes_of(x < infinity) | lanes_of(Vec::zero() - infinity < x);
}

template <class T>
void pack_bits(const PackBitsParams& p, int64_t begin, int64_t end) {
  const auto limit = [&](int64_t c, int n) {
    return p.threshold ? load(p.threshold + c, n) : Vec::zero();
  };
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    uint64_t* out = p.out + r * p.rails * p.words();
    const auto above = [&](int64_t c, int n) {
      const Vec v = load(x + c, n), t = limit(c, n);
      if (!p.at_least) return lanes_of(t < v);
      return ~lanes_of(v < t) & ordered(v) & ordered(t);
    };
    for_words(p.columns, above, [&](int64_t w, uint64_t bits) { out[w] = bits; });
    if (p.rails == 1) continue;
    const auto below = [&](int64_t c, int n) { return lanes_of(load(x + c, n) < limit(c, n)); };
    for_words(p.columns, below, [&](int64_t w, uint64_t bits) { out[p.words() + w] = bits; });
  }
}

template <class Function>
inline void activate(float* values) {
  for (int c = 0; c < kWord; c += Vec::kWidth)
    Function::apply(Vec::load(values + c)).store(values + c);
}

inline void activate(Activation activation, float* values) {
  switch (activation) {
    case Activation::none: return;
    case Activation::relu: return activate<Relu>(values);
    case Activation::gelu: return activate<Gelu>(values);
    case Activation::gelu_tanh: return activate<GeluTanh>(values);
    case Activation::silu: return activate<Silu>(values);
    case Activation::tanh: return activate<Tanh>(values);
  }
}

class Linear {
 public:
  Linear(const BinaryLinearParams& p, const BinaryBlock& block, void* scratch)
      : p_(p), block_(block), words_(p.words()) {
    const BinaryScratch parts = p.scratch(block.row_end - block.row_begin);
    char* memory = static_cast<char*>(scratch);
    rows_memory_ = memory;
    columns_memory_ = reinterpret_cast<uint8_t*>(memory + parts.columns);
    norm_rows_ = reinterpret_cast<float*>(memory + parts.norm_rows);
  }

  void run() {
    p_.by_bytes ? run_by_bytes() : run_by_counts();
    if (p_.result == BinaryResult::norm) with_type([&](auto type) { norm(type); });
  }

 private:
  void run_by_counts() {
    for (int64_t r = block_.row_begin; r < block_.row_end; ++r)
      p_.input == BinaryInput::codes ? take_codes(r) : take_signs(r);
    for (int64_t panel = block_.panel_begin; panel < block_.panel_end; ++panel) {
      const void* columns =
          prepare_columns(p_.packed + panel * words_ * kWord, words_, columns_memory_);
      if (p_.thresholds) load_thresholds(panel);
      multiply(panel, columns);
    }
  }

  void run_by_bytes() {
    int32_t row_sums[kBinaryByteRows];
    for (int64_t r = block_.row_begin; r < block_.row_end; ++r) {
      int8_t* to = bytes_of_row(r - block_.row_begin);
      row_sums[r - block_.row_begin] =
          p_.input == BinaryInput::codes
              ? stage_codes(static_cast<const int8_t*>(p_.x) + r * p_.x_stride, p_.in_features, to)
              : stage_row_of_signs(r, to);
    }
    const int64_t rows = block_.row_end - block_.row_begin;
#if defined(TAUT_ISA_amx)
    const bool tiles = rows >= kFewestTileRows;
    if (tiles) tile_configure(product_tiles(kTile, 64));
    const int64_t most = tiles ? kIntegerBlock : kIntegerRows;
#else
    constexpr int64_t most = kIntegerRows;
#endif
    alignas(64) int32_t sums[kMostSums][kWord];
    ByteProduct product{columns_memory_, words_, nullptr, p_.bytes_stride(), sums};
    const int64_t groups = (rows + most - 1) / most;
    for (int64_t panel = block_.panel_begin; panel < block_.panel_end; ++panel) {
      expand_bits(p_.packed + panel * words_ * kWord, words_, columns_memory_);
      if (p_.thresholds) load_thresholds(panel);
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t begin = rows * group / groups, end = rows * (group + 1) / groups;
        product.x = bytes_of_row(begin);
#if defined(TAUT_ISA_amx)
        tiles ? sum_rows_by_tiles(product) : sum_rows(product, end - begin);
#else
        sum_rows(product, end - begin);
#endif
        for (int64_t r = begin; r < end; ++r) {
          int32_t* row = sums[r - begin];
          for (int c = 0; c < kWord; ++c) row[c] = 2 * row[c] - row_sums[r];
          finish(block_.row_begin + r, panel, row);
        }
      }
    }
#if defined(TAUT_ISA_amx)
    if (tiles) tile_release();
#endif
  }

  int8_t* bytes_of_row(int64_t r) const {
    return reinterpret_cast<int8_t*>(rows_memory_) + r * p_.bytes_stride();
  }

  // Returns the sum of the signs.
  int32_t stage_row_of_signs(int64_t r, int8_t* to) const {
    int32_t sum = 0;
    for_signs(r, [&](int64_t w, uint64_t positive, uint64_t mask) {
      stage_signs(positive & mask, ~positive & mask, to + w * kWord);
      sum += 2 * __builtin_popcountll(positive & mask) - __builtin_popcountll(mask);
    });
    return sum;
  }

  // sum = base + sum over the row's operands of factor * count
  struct Row {
    int64_t first;  // operand
    int operands;
    int32_t base;
    int32_t factors[8];
  };

  uint64_t inside(int64_t word) const {
    const int64_t left = p_.in_features - word * kWord;
    return left < kWord ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
  }

  // body(word, positive, mask) for each word of row r: +1 where both have a bit, -1 where only mask
  // has.
  template <class Body>
  void for_signs(int64_t r, const Body& body) const {
    const uint64_t* positive = static_cast<const uint64_t*>(p_.x) + r * p_.x_stride;
    for (int64_t w = 0; w < words_; ++w) {
      uint64_t mask = inside(w);
      // Both rails set is 0: p ^ n is where one is.
      if (p_.input == BinaryInput::two_rails) mask &= positive[w] ^ positive[p_.rail_stride + w];
      body(w, positive[w], mask);
    }
  }

  Operand* operands(int64_t row) const {
    return reinterpret_cast<Operand*>(rows_memory_) + row * words_;
  }

  void take_signs(int64_t r) {
    Operand* to = operands(operand_rows_);
    int32_t nonzero = 0;
    for_signs(r, [&](int64_t w, uint64_t positive, uint64_t mask) {
      nonzero += __builtin_popcountll(mask);
      to[w] = Operand::of(positive, mask);
    });
    rows_[r - block_.row_begin] = {operand_rows_++, 1, nonzero, {-2}};
  }

  // A code in two's complement is the sum of its bits times 1, 2, 4 ..., the last one negative. The
  // number of bits is what the row's largest code needs.
  void take_codes(int64_t r) {
    const int8_t* codes = static_cast<const int8_t*>(p_.x) + r * p_.x_stride;
    const auto bits_at = [&](int64_t w, uint64_t (&bits)[8]) {
      uint8_t here[kWord] = {};
      const int64_t left = p_.in_features - w * kWord;
      std::memcpy(here, codes + w * kWord, static_cast<size_t>(left < kWord ? left : kWord));
      Bytes64 lanes = Bytes64::load(here);
      for (int b = 7; b >= 0; --b, lanes = lanes + lanes) bits[b] = lanes.top_bits();
    };
    uint64_t bits[8], unlike_sign[8] = {};
    for (int64_t w = 0; w < words_; ++w) {
      bits_at(w, bits);
      for (int b = 0; b < 7; ++b) unlike_sign[b] |= bits[b] ^ bits[7];
    }
    int needed = 8;
    while (needed > 1 && unlike_sign[needed - 2] == 0) --needed;
    Row row{operand_rows_, needed, 0, {}};
    for (int b = 0; b < needed; ++b) row.factors[b] = b == needed - 1 ? -(2 << b) : 2 << b;
    for (int64_t w = 0; w < words_; ++w) {
      bits_at(w, bits);
      for (int b = 0; b < needed; ++b) {
        operands(operand_rows_ + b)[w] = Operand::of(0, bits[b]);
        row.base -= row.factors[b] / 2 * __builtin_popcountll(bits[b]);
      }
    }
    operand_rows_ += needed;
    rows_[r - block_.row_begin] = row;
  }

  void multiply(int64_t panel, const void* columns) {
    constexpr int kMostOperands = 8;
    alignas(64) int32_t counts[kMostOperands][kWord];
    const int64_t rows = block_.row_end - block_.row_begin;
    const int64_t unmasked = p_.input == BinaryInput::one_rail ? p_.in_features / kWord : 0;
    for (int64_t r = 0, end = 0; r < rows; r = end) {
      const int64_t first = rows_[r].first;
      while (end < rows && rows_[end].first + rows_[end].operands - first <= kMostOperands) ++end;
      const int64_t last = rows_[end - 1].first + rows_[end - 1].operands;
      count(operands(first), words_, last - first, columns, words_, unmasked, counts);
      for (int64_t i = r; i < end; ++i) {
        const Row& row = rows_[i];
        alignas(64) int32_t sums[kWord];
        const int32_t (*mine)[kWord] = counts + (row.first - first);
        for (int c = 0; c < kWord; ++c) sums[c] = row.base + row.factors[0] * mine[0][c];
        for (int b = 1; b < row.operands; ++b)
          for (int c = 0; c < kWord; ++c) sums[c] += row.factors[b] * mine[b][c];
        finish(block_.row_begin + i, panel, sums);
      }
    }
  }

  void finish(int64_t row, int64_t panel, const int32_t* sums) {
    if (p_.result == BinaryResult::one_rail) {
      p_.bits[row * p_.panels() + panel] = greater_bits(sums, thresholds_[0]);
    } else if (p_.result == BinaryResult::two_rails) {
      uint64_t* bits = p_.bits + 2 * row * p_.panels() + panel;
      bits[0] = greater_bits(sums, thresholds_[0]);
      bits[p_.panels()] = greater_bits(sums, thresholds_[1]) & greater_bits(thresholds_[2], sums);
    } else {
      with_type([&](auto type) { finish_floats(type, row, panel, sums); });
    }
  }

  int64_t channels(int64_t panel) const {
    const int64_t left = p_.out_features - panel * kWord;
    return left < kWord ? left : kWord;
  }

  // Of channels that do not exist no bit is set.
  void load_thresholds(int64_t panel) {
    const int rails = p_.result == BinaryResult::two_rails ? 3 : 1;
    for (int t = 0; t < rails; ++t) {
      for (int c = 0; c < kWord; ++c) thresholds_[t][c] = INT32_MAX;
      std::memcpy(thresholds_[t], p_.thresholds + t * p_.out_features + panel * kWord,
                  static_cast<size_t>(channels(panel)) * sizeof(int32_t));
    }
  }

  template <class T>
  void finish_floats(T, int64_t row, int64_t panel, const int32_t* sums) {
    alignas(64) float values[kWord];
    const int64_t n = channels(panel), first = panel * kWord;
    const Vec of_row = Vec::set(p_.x_scale ? p_.x_scale[row] : 1.0f);
    for_columns(n, [&](int64_t c, int lanes) {
      Vec factor = load(p_.scale + first + c, lanes);
      if (p_.x_scale) factor = of_row * factor;
      Vec v = load_integers(sums + c) * factor;
      if (p_.bias) v = v + load(p_.bias + first + c, lanes);
      v.store(values + c);
    });
    activate(p_.activation, values);
    const T* residual = p_.residual
                            ? static_cast<const T*>(p_.residual) + row * p_.residual_stride + first
                            : nullptr;
    float* norm_row = norm_rows_ + (row - block_.row_begin) * p_.panels() * kWord + first;
    T* out = static_cast<T*>(p_.out) + row * p_.out_features + first;
    for_columns(n, [&](int64_t c, int lanes) {
      Vec v = Vec::load(values + c);
      if (residual) v = v + load(residual + c, lanes);
      p_.result == BinaryResult::norm ? store(v, norm_row + c, lanes) : store(v, out + c, lanes);
    });
  }

  template <class T>
  void norm(T) {
    const int64_t columns = p_.out_features;
    for (int64_t r = block_.row_begin; r < block_.row_end; ++r) {
      float* row = norm_rows_ + (r - block_.row_begin) * p_.panels() * kWord;
      Vec total = Vec::zero();
      for_columns(columns, [&](int64_t c, int n) { total = total + load(row + c, n); });
      const Moments moments = moments_of(row, columns, total, false, p_.eps);
      const T* weight = static_cast<const T*>(p_.weight);
      const T* norm_bias = static_cast<const T*>(p_.norm_bias);
      T* out = static_cast<T*>(p_.out) + r * columns;
      const auto above = [&](int64_t c, int n) {
        Vec v = (load(row + c, n) - Vec::set(moments.mean)) * Vec::set(moments.rstd);
        if (weight) v = v * load(weight + c, n);
        if (norm_bias) v = v + load(norm_bias + c, n);
        store(v, out + c, n);
        return lanes_of((p_.bit_threshold ? load(p_.bit_threshold + c, n) : Vec::zero()) < v);
      };
      uint64_t* bits = p_.bits + r * p_.panels();
      for_words(columns, above, [&](int64_t w, uint64_t word) { bits[w] = word; });
    }
  }

  template <class Body>
  void with_type(const Body& body) {
    switch (p_.type) {
      case FloatType::f32: return body(float{});
      case FloatType::bf16: return body(bf16{});
      case FloatType::f16: return body(f16{});
    }
  }

  const BinaryLinearParams& p_;
  const BinaryBlock& block_;
  const int64_t words_;
#if defined(TAUT_ISA_amx)
  static constexpr int64_t kMostSums = kIntegerBlock;
#else
  static constexpr int64_t kMostSums = kIntegerRows;
#endif
  char* rows_memory_;        // operands [operand row][word], or bytes of x
  uint8_t* columns_memory_;  // of one panel
  float* norm_rows_;
  int64_t operand_rows_ = 0;
  Row rows_[kBinaryRows];
  int32_t thresholds_[3][kWord];
};

}  // namespace

void pack_bits_f32(const PackBitsParams& p, int64_t begin, int64_t end) {
  pack_bits<float>(p, begin, end);
}
void pack_bits_bf16(const PackBitsParams& p, int64_t begin, int64_t end) {
  pack_bits<bf16>(p, begin, end);
}
void pack_bits_f16(const PackBitsParams& p, int64_t begin, int64_t end) {
  pack_bits<f16>(p, begin, end);
}

void binary_linear_block(const BinaryLinearParams& p, const BinaryBlock& block, void* scratch) {
  Linear(p, block, scratch).run();
}

}  // namespace TAUT_ISA
}  // namespace taut
