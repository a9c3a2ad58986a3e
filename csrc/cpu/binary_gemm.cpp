// Launchers of packed signs and of linear layers over 1-bit weights on the CPU.
#include "cpu/binary_gemm.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

VariantRecord pack_variant("pack_bits");
VariantRecord unpack_variant("unpack_bits");
VariantRecord linear_variant("binary_linear");
VariantRecord linear_bits_variant("binary_linear_bits");
VariantRecord linear_layer_norm_variant("binary_linear_layer_norm");

using Optional = std::optional<Tensor>;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

Tensor empty_bits(int64_t rows, int64_t rails, int64_t words) {
  return rails == 1 ? empty_cpu({rows, words}, ScalarType::Long)
                    : empty_cpu({rows, rails, words}, ScalarType::Long);
}

uint64_t* words_of(const Tensor& t) { return static_cast<uint64_t*>(t.mutable_data_ptr()); }

Tensor pack_bits(const Tensor& x, const Optional& threshold, int64_t rails,
                 const std::string& tie) {
  const char* op = "pack_bits";
  check_cpu(x, op, "x");
  if (x.dim() != 2) check(false, op, "x must be (rows, columns), got ", shape_of(x));
  check(has_contiguous_rows(x), op, "x must have contiguous rows");
  check(rails == 1 || rails == 2, op, "rails must be one of 1, 2, got ", rails);
  check(tie == "strict" || tie == "geq", op, "tie must be one of strict, geq, got ", tie);
  if (threshold) check_vector(*threshold, x.size(1), ScalarType::Float, op, "threshold");
  PackBitsRows* kernel = float_kernel(x.scalar_type(), op, "x", TAUT_KERNEL(pack_bits_f32),
                                      TAUT_KERNEL(pack_bits_bf16), TAUT_KERNEL(pack_bits_f16));
  PackBitsParams p{};
  p.x = x.const_data_ptr();
  p.threshold = data_or_null<float>(threshold);
  p.x_stride = x.stride(0);
  p.columns = x.size(1);
  p.rails = static_cast<int>(rails);
  p.at_least = tie == "geq";
  Tensor out = empty_bits(x.size(0), rails, p.words());
  p.out = words_of(out);
  parallel_rows(x.size(0), p.columns, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  pack_variant.record();
  return out;
}

// Bits of `columns` columns on one rail or two, rows contiguous.
void check_bits(const Tensor& t, int64_t columns, const char* op, const char* name) {
  check_cpu(t, op, name);
  const int64_t words = divide_up(columns, kBitsPerWord), dim = t.dim();
  const bool fits = (dim == 2 || (dim == 3 && t.size(1) == 2)) && t.size(dim - 1) == words;
  if (!fits)
    check(false, op, name, " must be (rows, ", words, ") or (rows, 2, ", words, "), bits of ",
          columns, " columns, got ", shape_of(t));
  check_dtype(t, ScalarType::Long, op, name);
  check(has_contiguous_rows(t), op, name, " must have contiguous rows");
}

// Bit i of `bits` as byte i, 0 or 1.
uint64_t bytes_of(uint64_t bits) {
  constexpr uint64_t kOnes = 0x0101010101010101u, kDiagonal = 0x8040201008040201u;
  const uint64_t found = (bits & 255) * kOnes & kDiagonal;
  return (found + 0x7f7f7f7f7f7f7f7fu) >> 7 & kOnes;
}

Tensor unpack_bits(const Tensor& bits, int64_t columns) {
  const char* op = "unpack_bits";
  check(columns >= 0, op, "columns must be at least 0, got ", columns);
  check_bits(bits, columns, op, "bits");
  const int64_t rows = bits.size(0), stride = bits.stride(0);
  const bool two = bits.dim() == 3;
  const int64_t rail = two ? bits.stride(1) : 0;
  Tensor out = empty_cpu({rows, columns}, ScalarType::Char);
  const uint64_t* from = static_cast<const uint64_t*>(bits.const_data_ptr());
  int8_t* to = static_cast<int8_t*>(out.mutable_data_ptr());
  parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < columns; c += 8) {  // x86 and ARM: byte i of a word comes i-th
        const uint64_t* word = from + r * stride + c / kBitsPerWord;
        const uint64_t p = word[0] >> (c % kBitsPerWord);
        const uint64_t n = two ? word[rail] >> (c % kBitsPerWord) : ~p;
        const uint64_t eight = bytes_of(p & ~n) | bytes_of(n & ~p) * 255;
        std::memcpy(to + r * columns + c, &eight,
                    static_cast<size_t>(std::min<int64_t>(8, columns - c)));
      }
  });
  unpack_variant.record();
  return out;
}

// Checks x and packed, and fills in what describes them.
BinaryLinearParams prepare(const char* op, const Tensor& x, const Optional& x_scale,
                           const Tensor& packed, int64_t out_features, int64_t in_features) {
  constexpr int64_t kMostInFeatures = 65536;
  check(out_features > 0, op, "out_features must be at least 1, got ", out_features);
  check(in_features > 0 && in_features <= kMostInFeatures, op, "in_features must be from 1 to ",
        kMostInFeatures, ", got ", in_features);
  BinaryLinearParams p{};
  p.in_features = in_features;
  p.out_features = out_features;
  if (x.scalar_type() == ScalarType::Char) {
    check_rows(x, x.size(0), in_features, ScalarType::Char, op, "x");
    check(x_scale.has_value(), op, "x_scale must be given with x of int8");
    check_rows(*x_scale, x.size(0), 1, ScalarType::Float, op, "x_scale");
    check(x_scale->is_contiguous(), op, "x_scale must be contiguous");
    p.input = BinaryInput::codes;
    p.x_scale = data_or_null<float>(x_scale);
  } else {
    check_bits(x, in_features, op, "x");
    check(!x_scale, op, "x_scale must be None with x of bits");
    p.input = x.dim() == 2 ? BinaryInput::one_rail : BinaryInput::two_rails;
    p.rail_stride = x.dim() == 2 ? 0 : x.stride(1);
  }
  p.x = x.const_data_ptr();
  p.x_stride = x.stride(0);
  check_cpu(packed, op, "packed");
  const bool fits = packed.dim() == 3 && packed.size(0) == p.panels() &&
                    packed.size(1) == p.words() && packed.size(2) == kBitsPerWord;
  if (!fits)
    check(false, op, "packed must be pack_binary_weight of a (", out_features, ", ", in_features,
          ") weight, got ", shape_of(packed));
  check_dtype(packed, ScalarType::Long, op, "packed");
  check(packed.is_contiguous(), op, "packed must be contiguous");
  p.packed = static_cast<const uint64_t*>(packed.const_data_ptr());
  return p;
}

void set_scale(const char* op, BinaryLinearParams& p, const Tensor& scale, const Optional& bias) {
  check_vector(scale, p.out_features, ScalarType::Float, op, "scale");
  if (bias) check_vector(*bias, p.out_features, ScalarType::Float, op, "bias");
  p.scale = scale.const_data_ptr<float>();
  p.bias = data_or_null<float>(bias);
}

// Cycles that a word of a row costs against a word of 64 channels: `count` for each of its operands
// where bits are counted, or `bytes`, plus a row's share of `expansion` of the 64 words.
struct Cost {
  double count, bytes, expansion;
};

// Measured on Zen 4 with K = N = 768, one thread. Those of AMX are predictions for Sapphire Rapids:
// a count is 8 times 3 instructions on two ports, 8 tile products of 16 cycles serve 32 rows at 60
// % of their peak, and an expansion stores 64 vectors.
Cost cost_of(bool tiles) {
  switch (active_isa()) {
    case Isa::portable: return {147, 570, 300};
    case Isa::avx2: return {32, 83, 100};
    case Isa::avx512: return {37, 75, 100};
    case Isa::avx512_bf16: return {16, 58, 170};
    default: return tiles ? Cost{12, 7, 160} : Cost{12, 58, 170};
  }
}

// Operands of a row whose bits are counted. Of codes a few rows are looked at: the answer is for
// choosing a way, and must be right only where rows are alike.
int operands_of(const BinaryLinearParams& p, int64_t rows) {
  if (p.input != BinaryInput::codes) return 1;
  constexpr int64_t kLooks = 16;
  const int64_t looks = std::min(rows, kLooks);
  int unlike_sign = 0;
  for (int64_t look = 0; look < looks; ++look) {
    const int8_t* row = static_cast<const int8_t*>(p.x) + rows * look / looks * p.x_stride;
    for (int64_t c = 0; c < p.in_features; ++c) unlike_sign |= row[c] ^ (row[c] >> 7);
  }
  int operands = 1;
  for (; unlike_sign; unlike_sign >>= 1) ++operands;
  return operands;
}

// Rows of a block: by bytes, as many as leave their bytes and fp32 sums in half of an L2 of 1 MiB.
int64_t most_rows(const BinaryLinearParams& p) {
  if (!p.by_bytes) return p.input == BinaryInput::codes ? kBinaryCodeRows : kBinaryRows;
  const int64_t floats = p.result == BinaryResult::norm ? p.panels() * kBitsPerWord : 0;
  const int64_t fitting = (int64_t{1} << 19) / (p.bytes_stride() + 4 * floats);
  return std::clamp<int64_t>(fitting / kIntegerBlock, 2, kBinaryByteRows / kIntegerBlock) *
         kIntegerBlock;
}

// Chooses between bytes and counts, and returns the rows of a block.
int64_t choose_way(BinaryLinearParams& p, int64_t rows, int64_t threads) {
  const int64_t of_thread = divide_up(rows, threads);
  p.by_bytes = true;
  // Rows share an expansion, so threads rather share the panels.
  const int64_t wanted = p.result == BinaryResult::norm ? of_thread : rows;
  const int64_t shared = std::clamp<int64_t>(wanted, 1, most_rows(p));
  const Cost cost = cost_of(shared >= kFewestTileRows);
  const double bytes = cost.bytes + cost.expansion / static_cast<double>(shared);
  p.by_bytes = operands_of(p, rows) * cost.count > bytes;
  return p.by_bytes ? shared : std::clamp<int64_t>(of_thread, 1, most_rows(p));
}

void run(BinaryLinearParams& p, const Tensor& x, VariantRecord& record) {
  BinaryLinear* kernel = TAUT_KERNEL(binary_linear_block);
  const int64_t rows = x.size(0);
  constexpr int64_t kWorthTwoThreads = 1 << 22;  // products of bits, some 5 us of one core
  const bool small = rows * p.in_features * p.out_features < kWorthTwoThreads;
  const int64_t threads = small ? 1 : torch::stable::get_num_threads();
  const bool norm = p.result == BinaryResult::norm;
  const int64_t block_rows = choose_way(p, rows, threads);
  const int64_t blocks = divide_up(rows, block_rows);
  constexpr int64_t kTasksPerThread = 4;
  const int64_t groups =
      norm || threads == 1
          ? 1
          : std::clamp<int64_t>(threads * kTasksPerThread / std::max<int64_t>(1, blocks), 1,
                                p.panels());
  const int64_t floats = divide_up(p.scratch(block_rows).end, 4);
  const auto task = [&](int64_t index) {
    const int64_t block = index / groups, group = index % groups;
    kernel(p,
           {block * block_rows, std::min(rows, (block + 1) * block_rows),
            p.panels() * group / groups, p.panels() * (group + 1) / groups},
           thread_scratch(floats));
  };
  if (threads == 1) {
    for (int64_t i = 0; i < blocks * groups; ++i) task(i);
  } else {
    parallel_tasks(blocks * groups, task);
  }
  const bool tiles = active_isa() >= Isa::amx && block_rows >= kFewestTileRows;
  record.record(!p.by_bytes ? nullptr : tiles ? "tiles" : "bytes");
}

Tensor binary_linear(const Tensor& x, const Optional& x_scale, const Tensor& packed,
                     const Tensor& scale, const Optional& bias, int64_t out_features,
                     int64_t in_features, const std::string& epilogue, const Optional& residual,
                     std::optional<ScalarType> out_dtype) {
  const char* op = "binary_linear";
  BinaryLinearParams p = prepare(op, x, x_scale, packed, out_features, in_features);
  set_scale(op, p, scale, bias);
  const ScalarType dtype = out_dtype.value_or(ScalarType::Float);
  p.type = float_type(dtype, op, "out_dtype");
  p.activation = parse_activation(epilogue, op);
  const int64_t rows = x.size(0);
  if (residual) check_rows(*residual, rows, out_features, dtype, op, "residual");
  p.residual = data_or_null(residual);
  p.residual_stride = row_stride_or_0(residual);
  p.result = BinaryResult::floats;
  Tensor out = empty_cpu({rows, out_features}, dtype);
  p.out = out.mutable_data_ptr();
  run(p, x, linear_variant);
  return out;
}

Tensor binary_linear_bits(const Tensor& x, const Tensor& packed, const Tensor& thresholds,
                          int64_t out_features, int64_t in_features) {
  const char* op = "binary_linear_bits";
  check(x.scalar_type() != ScalarType::Char, op, "x must be int64 bits, got int8");
  BinaryLinearParams p = prepare(op, x, std::nullopt, packed, out_features, in_features);
  const bool two = thresholds.dim() == 2;
  check_cpu(thresholds, op, "thresholds");
  const bool fits = two ? thresholds.size(0) == 3 && thresholds.size(1) == out_features
                        : thresholds.dim() == 1 && thresholds.size(0) == out_features;
  if (!fits)
    check(false, op, "thresholds must be (", out_features, ",) or (3, ", out_features, "), got ",
          shape_of(thresholds));
  check_dtype(thresholds, ScalarType::Int, op, "thresholds");
  check(thresholds.is_contiguous(), op, "thresholds must be contiguous");
  p.thresholds = thresholds.const_data_ptr<int32_t>();
  p.result = two ? BinaryResult::two_rails : BinaryResult::one_rail;
  Tensor bits = empty_bits(x.size(0), two ? 2 : 1, p.panels());
  p.bits = words_of(bits);
  run(p, x, linear_bits_variant);
  return bits;
}

std::tuple<Tensor, Tensor> binary_linear_layer_norm(const Tensor& x, const Optional& x_scale,
                                                    const Tensor& packed, const Tensor& scale,
                                                    const Optional& bias, int64_t in_features,
                                                    const Tensor& residual, const Optional& weight,
                                                    const Optional& norm_bias, double eps,
                                                    const Optional& bit_threshold) {
  const char* op = "binary_linear_layer_norm";
  if (residual.dim() != 2)
    check(false, op, "residual must be (rows, out_features), got ", shape_of(residual));
  const int64_t rows = x.size(0), columns = residual.size(1);
  const ScalarType dtype = residual.scalar_type();
  BinaryLinearParams p = prepare(op, x, x_scale, packed, columns, in_features);
  set_scale(op, p, scale, bias);
  p.type = float_type(dtype, op, "residual");
  check_rows(residual, rows, columns, dtype, op, "residual");
  if (weight) check_vector(*weight, columns, dtype, op, "norm_weight");
  if (norm_bias) check_vector(*norm_bias, columns, dtype, op, "norm_bias");
  if (bit_threshold) check_vector(*bit_threshold, columns, ScalarType::Float, op, "bit_threshold");
  p.residual = residual.const_data_ptr();
  p.residual_stride = residual.stride(0);
  p.weight = data_or_null(weight);
  p.norm_bias = data_or_null(norm_bias);
  p.bit_threshold = data_or_null<float>(bit_threshold);
  p.eps = static_cast<float>(eps);
  p.result = BinaryResult::norm;
  Tensor out = empty_cpu({rows, columns}, dtype);
  Tensor bits = empty_bits(rows, 1, p.panels());
  p.out = out.mutable_data_ptr();
  p.bits = words_of(bits);
  run(p, x, linear_layer_norm_variant);
  return {std::move(out), std::move(bits)};
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("pack_bits", TORCH_BOX(&taut::pack_bits));
  m.impl("unpack_bits", TORCH_BOX(&taut::unpack_bits));
  m.impl("binary_linear", TORCH_BOX(&taut::binary_linear));
  m.impl("binary_linear_bits", TORCH_BOX(&taut::binary_linear_bits));
  m.impl("binary_linear_layer_norm", TORCH_BOX(&taut::binary_linear_layer_norm));
}
