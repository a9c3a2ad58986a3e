// Launchers of the linear layers over low-bit weights on the CPU.
#include "cpu/lowbit_gemm.h"

#include <string>
#include <tuple>

#include "cpu/launchers.h"
#include "cpu/lowbit_arguments.h"
#include "cpu/scratch.h"

namespace taut {
namespace {

VariantRecord linear_variant("lowbit_linear");
VariantRecord linear_quantize_variant("lowbit_linear_quantize");
VariantRecord linear_layer_norm_variant("lowbit_linear_layer_norm");

// 255 * 128 * 65536 < 2^31: sums stay within int32.
constexpr int64_t kMostIntegerFeatures = 65536;

Element element_of(ScalarType dtype, const char* op, const char* name) {
  switch (dtype) {
    case ScalarType::Float: return Element::f32;
    case ScalarType::BFloat16: return Element::bf16;
    case ScalarType::Half: return Element::f16;
    default:
      check(false, op, name, " must be float32, bfloat16, float16, got ", dtype_name(dtype));
      return Element::f32;
  }
}

void check_group_size(int64_t size, const char* op, const char* name) {
  check(size == 0 || size == 32 || size == 64 || size == 128 || size == 256, op, name,
        " must be one of 0, 32, 64, 128, 256, got ", size);
}

// A contiguous fp32 matrix.
const float* matrix(const Tensor& t, int64_t rows, int64_t columns, const char* op,
                    const char* name) {
  check_rows(t, rows, columns, ScalarType::Float, op, name);
  check(t.is_contiguous(), op, name, " must be contiguous");
  return static_cast<const float*>(t.const_data_ptr());
}

// Pieces of one buffer, each from a whole cache line on; without a buffer they are only counted.
struct Pieces {
  float* base;
  int64_t used = 0;  // floats
  template <class T>
  T* take(int64_t count) {
    float* piece = base ? base + used : nullptr;
    used += divide_up(count * static_cast<int64_t>(sizeof(T)), 64) * 16;
    return reinterpret_cast<T*>(piece);
  }
};

// The arguments of all three ops, in the schema's order.
struct Operands {
  const Tensor& x;
  const std::optional<Tensor>& x_scale;
  const Tensor& packed;
  const Tensor& scale;
  const std::optional<Tensor>& zero_point;
  const std::optional<Tensor>& codebook;
  const std::optional<Tensor>& bias;
  int64_t out_features, bits, group_size, x_bits;
};

class Launch {
 public:
  LowbitParams params{};

  // Checks the operands.
  Launch(const Operands& o, const char* op) : op_(op) {
    LowbitParams& p = params;
    check_cpu(o.x, op, "x");
    if (o.x.dim() != 2)
      check(false, op, "x must be (total_tokens, in_features), got ", shape_of(o.x));
    const bool integers = o.x.scalar_type() == ScalarType::Char;
    rows_ = o.x.size(0);
    p.in_features = o.x.size(1);
    p.out_features = o.out_features;
    check(has_contiguous_rows(o.x), op, "x must have contiguous rows");
    check_packed_lowbit(o.packed, o.bits, o.out_features, p.in_features, op);
    check_group_size(o.group_size, op, "group_size");
    check(o.x_bits == 0 || o.x_bits == 4 || o.x_bits == 8, op,
          "x_bits must be one of 0, 4, 8, got ", o.x_bits);
    p.x = o.x.const_data_ptr();
    p.x_type = integers ? Element::i8 : element_of(o.x.scalar_type(), op, "x");
    p.x_stride = o.x.stride(0);
    p.x_bits = integers ? 0 : o.x_bits;
    p.packed = static_cast<const uint8_t*>(o.packed.const_data_ptr());
    p.bits = o.bits;
    p.split_x = p.integer() && p.bits == 8 && active_isa() == Isa::avx2;
    // Whole blocks, so that nothing is read behind a row; not from strides that share cache sets,
    // of which the 32 rows of a block of tiles want more.
    const int64_t shared = active_isa() >= Isa::amx ? 1024 : 4096;
    p.in_place = integers && !p.split_x && p.in_features % kLowbitBlock == 0 &&
                 p.x_stride >= p.in_features && p.x_stride % shared != 0;
    p.group_units = o.group_size ? o.group_size / kLowbitUnit : p.units();
    p.groups = divide_up(p.units(), p.group_units);
    p.x_groups = 1;
    p.scale = matrix(o.scale, p.out_features, p.groups, op, "scale");
    if (o.zero_point)
      p.zero_point = matrix(*o.zero_point, p.out_features, p.groups, op, "zero_point");
    if (o.codebook) set_codebook(*o.codebook);
    if (integers) {
      check(o.x_scale.has_value(), op, "x_scale must be given with x of int8, got None");
      set_x_scale(*o.x_scale);
    } else {
      check(!o.x_scale, op, "x_scale must be None unless x is int8");
    }
    check(!p.integer() || p.in_features <= kMostIntegerFeatures, op, "in_features must be at most ",
          kMostIntegerFeatures, " for integer products, got ", p.in_features);
    if (o.bias) {
      p.bias_type = element_of(o.bias->scalar_type(), op, "bias");
      check_vector(*o.bias, p.out_features, o.bias->scalar_type(), op, "bias");
      p.bias = o.bias->const_data_ptr();
    }
  }

  int64_t rows() const { return rows_; }

  void set_residual(const Tensor& residual, ScalarType dtype) {
    check_rows(residual, rows_, params.out_features, dtype, op_, "residual");
    params.residual = residual.const_data_ptr();
    params.residual_type = element_of(dtype, op_, "residual");
    params.residual_stride = residual.stride(0);
  }

  // Runs everything, and records the variant.
  void run(VariantRecord& record) {
    LowbitParams& p = params;
    constexpr int64_t kWorthTwoThreads = 256 * 1024;  // multiply-adds, about 2 us of one core
    const bool small = rows_ * p.in_features * p.out_features < kWorthTwoThreads;
    threads_ = small ? 1 : torch::stable::get_num_threads();
    vnni_ = p.integer() && active_isa() >= Isa::avx512_bf16;
    p.panels_together = p.integer() && active_isa() >= Isa::amx
                            ? panels_together(p.code_bytes() + 4 * p.constants_size())
                            : 1;
    if (rows_) rows_ < block_rows() * threads_ ? run_shared() : run_blocks();
    record.record(tiles_.load() ? "tiles" : vnni_ ? "vnni" : p.integer() ? nullptr : "float");
  }

 private:
  bool finishes() const { return params.norm || params.q; }
  // Rows of a tile; all blocks of rows but the last are whole ones.
  int64_t unit() const { return params.integer() && active_isa() >= Isa::amx ? kIntegerBlock : 6; }

  // Rows whose codes and sums stay in L2 together: half of it, of 2 MiB where there is AMX, else
  // of 1 MiB.
  int64_t block_rows() const {
    const LowbitParams& p = params;
    const int64_t row_bytes = (p.integer() ? p.staged_stride() : 4 * p.in_features) +
                              (finishes() ? 4 * p.sums_stride() : 0);
    const int64_t most = p.integer() && unit() == 6 ? 96 : kMaxLowbitRows;
    const int64_t half_of_l2 = active_isa() >= Isa::amx ? 1 << 20 : 1 << 19;
    const int64_t rows = half_of_l2 / row_bytes;
    return std::clamp<int64_t>(rows / unit() * unit(), std::min<int64_t>(4 * unit(), 96),
                               most / unit() * unit());
  }

  LowbitRows staged_rows(Pieces& pieces, int64_t rows) const {
    const LowbitParams& p = params;
    if (!p.integer())
      return {nullptr, nullptr, nullptr,
              p.x_type == Element::f16 ? pieces.take<float>(rows * p.in_features) : nullptr};
    int8_t* codes = p.in_place ? nullptr : pieces.take<int8_t>(rows * p.codes_stride());
    return {codes, pieces.take<float>(rows * p.x_groups), pieces.take<int32_t>(rows * p.groups),
            nullptr};
  }
  int8_t* codes_in_place(int64_t row) const {
    return const_cast<int8_t*>(static_cast<const int8_t*>(params.x)) + row * params.x_stride;
  }
  LowbitScratch kernel_scratch(Pieces& pieces) const {
    const LowbitParams& p = params;
    LowbitScratch s{};
    s.constants = pieces.take<float>(p.panels_together * p.constants_size());
    if (p.codebook) s.codebook = pieces.take<float>(kLowbitPanel << p.bits);
    if (p.x_zero_point != 0.0f) s.ones = pieces.take<int8_t>(p.staged_stride());
    if (!p.integer()) {
      s.sums = pieces.take<float>(kMaxLowbitRows * kLowbitPanel);
      s.values = pieces.take<uint8_t>(p.values_bytes());
    }
    if (p.integer() && (unit() == kIntegerBlock ? p.bits < 8 : p.bits == 3))
      s.codes = pieces.take<uint8_t>(p.panels_together * p.code_bytes());
    return s;
  }

  // Few rows: all are staged, then threads share panels (and rows), then they share the rows.
  void run_shared() {
    const LowbitParams& p = params;
    Pieces count{nullptr};
    staged_rows(count, rows_);
    if (finishes()) count.take<float>(rows_ * p.sums_stride());
    const LaunchScratch memory(count.used);
    Pieces pieces{memory.data};
    LowbitRows rows = staged_rows(pieces, rows_);
    if (p.in_place) rows.codes = codes_in_place(0);
    float* sums = finishes() ? pieces.take<float>(rows_ * p.sums_stride()) : nullptr;

    if (p.integer() || p.x_type == Element::f16)
      parallel_rows(rows_, p.in_features, [&](int64_t begin, int64_t end) {
        stage_(p, begin, end, rows.from(p, begin));
      });
    constexpr int64_t kTasksPerThread = 16;
    const RowSplit split = split_rows(rows_, unit(), block_rows(), 1);
    const int64_t panels = p.panels();
    const int64_t wanted = divide_up(threads_ * kTasksPerThread, split.blocks);
    const int64_t most = threads_ == 1 ? panels : std::max<int64_t>(1, panels / wanted);
    const int64_t groups = divide_up(panels, most);
    run_tasks(split.blocks * groups, threads_, [&](int64_t task, int64_t) {
      const int64_t block = task / groups, group = task % groups, begin = split.begin(block);
      multiply(LowbitBlock{begin, split.begin(block + 1), panels * group / groups,
                           panels * (group + 1) / groups},
               rows.from(p, begin), sums ? sums + begin * p.sums_stride() : nullptr,
               kernel_scratch_of_thread());
    });
    if (sums)
      parallel_rows(rows_, p.out_features, [&](int64_t begin, int64_t end) {
        finish_(p, begin, end, sums + begin * p.sums_stride());
      });
  }

  // Many rows: a thread does everything to a block of them, which stays in its L2.
  void run_blocks() {
    const LowbitParams& p = params;
    const int64_t most = block_rows();
    const RowSplit split = split_rows(rows_, unit(), most, threads_);
    run_tasks(split.blocks, threads_, [&](int64_t task, int64_t) {
      const auto carve = [&](Pieces& pieces, LowbitScratch& scratch, LowbitRows& rows) {
        scratch = kernel_scratch(pieces);
        rows = staged_rows(pieces, most);
        return finishes() ? pieces.take<float>(most * p.sums_stride()) : nullptr;
      };
      LowbitScratch scratch;
      LowbitRows rows;
      Pieces count{nullptr};
      carve(count, scratch, rows);
      Pieces pieces{thread_scratch(count.used)};
      float* sums = carve(pieces, scratch, rows);
      const int64_t begin = split.begin(task), end = split.begin(task + 1);
      if (p.in_place) rows.codes = codes_in_place(begin);
      stage_(p, begin, end, rows);
      multiply(LowbitBlock{begin, end, 0, p.panels()}, rows, sums, scratch);
      if (sums) finish_(p, begin, end, sums);
    });
  }

  LowbitScratch kernel_scratch_of_thread() const {
    Pieces count{nullptr};
    kernel_scratch(count);
    Pieces pieces{thread_scratch(count.used)};
    return kernel_scratch(pieces);
  }

  void multiply(const LowbitBlock& block, const LowbitRows& rows, float* sums,
                const LowbitScratch& scratch) {
    if (multiply_(params, block, rows, sums, scratch))
      tiles_.store(true, std::memory_order_relaxed);
  }

  void set_codebook(const Tensor& codebook) {
    LowbitParams& p = params;
    const int64_t size = int64_t{1} << p.bits;
    check_cpu(codebook, op_, "codebook");
    check(!p.x_bits && p.x_type != Element::i8, op_, "x_bits must be 0 with a codebook");
    check_dtype(codebook, ScalarType::Float, op_, "codebook");
    p.codebook_per_channel = codebook.dim() == 2;
    const bool fits =
        (codebook.dim() == 1 && codebook.size(0) == size) ||
        (codebook.dim() == 2 && codebook.size(0) == p.out_features && codebook.size(1) == size);
    if (!fits || !codebook.is_contiguous())
      check(false, op_, "codebook must be (", size, ",) or (", p.out_features, ", ", size,
            "), contiguous, got ", shape_of(codebook));
    p.codebook = static_cast<const float*>(codebook.const_data_ptr());
  }

  void set_x_scale(const Tensor& x_scale) {
    LowbitParams& p = params;
    if (x_scale.dim() != 2 || (x_scale.size(1) != 1 && x_scale.size(1) != p.groups))
      check(false, op_, "x_scale must be (", rows_, ", 1 or ", p.groups, "), got ",
            shape_of(x_scale));
    p.x_groups = x_scale.size(1);
    check_rows(x_scale, rows_, p.x_groups, ScalarType::Float, op_, "x_scale");
    p.x_scale = static_cast<const float*>(x_scale.const_data_ptr());
    p.x_scale_stride = x_scale.stride(0);
  }

  const char* op_;
  int64_t rows_ = 0;
  int64_t threads_ = 1;
  bool vnni_ = false;
  std::atomic<bool> tiles_{false};
  LowbitStage* stage_ = TAUT_KERNEL(lowbit_stage);
  LowbitMultiply* multiply_ = TAUT_KERNEL(lowbit_multiply);
  LowbitFinish* finish_ = TAUT_KERNEL(lowbit_finish);
};

}  // namespace

Tensor lowbit_linear(const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
                     const Tensor& scale, const std::optional<Tensor>& zero_point,
                     const std::optional<Tensor>& codebook, const std::optional<Tensor>& bias,
                     int64_t out_features, int64_t bits, int64_t group_size, int64_t x_bits,
                     const std::string& epilogue, const std::optional<Tensor>& residual,
                     double x_zero_point, std::optional<ScalarType> out_dtype) {
  const char* op = "lowbit_linear";
  Launch launch({x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits,
                 group_size, x_bits},
                op);
  LowbitParams& p = launch.params;
  p.activation = parse_activation(epilogue, op);
  const ScalarType dtype = out_dtype.value_or(x.scalar_type());
  p.out_type = element_of(dtype, op, "out_dtype");
  if (residual) launch.set_residual(*residual, dtype);
  p.x_zero_point = p.integer() ? static_cast<float>(x_zero_point) : 0.0f;
  Tensor out = empty_cpu({launch.rows(), out_features}, dtype);
  p.out = out.mutable_data_ptr();
  launch.run(linear_variant);
  return out;
}

std::tuple<Tensor, Tensor> lowbit_linear_quantize(
    const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
    const Tensor& scale, const std::optional<Tensor>& zero_point,
    const std::optional<Tensor>& codebook, const std::optional<Tensor>& bias, int64_t out_features,
    int64_t bits, int64_t group_size, int64_t x_bits, const std::string& epilogue, int64_t out_bits,
    int64_t out_group_size) {
  const char* op = "lowbit_linear_quantize";
  Launch launch({x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits,
                 group_size, x_bits},
                op);
  LowbitParams& p = launch.params;
  p.activation = parse_activation(epilogue, op);
  check(out_bits == 4 || out_bits == 8, op, "out_bits must be one of 4, 8, got ", out_bits);
  check_group_size(out_group_size, op, "out_group_size");
  p.q_bits = out_bits;
  p.q_group_size = out_group_size;
  Tensor q = empty_cpu({launch.rows(), out_features}, ScalarType::Char);
  const int64_t groups = out_group_size ? divide_up(out_features, out_group_size) : 1;
  Tensor q_scale = empty_cpu({launch.rows(), groups}, ScalarType::Float);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.q_scale = static_cast<float*>(q_scale.mutable_data_ptr());
  launch.run(linear_quantize_variant);
  return {q, q_scale};
}

std::tuple<Tensor, Tensor, Tensor> lowbit_linear_layer_norm(
    const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
    const Tensor& scale, const std::optional<Tensor>& zero_point,
    const std::optional<Tensor>& codebook, const std::optional<Tensor>& bias, int64_t out_features,
    int64_t bits, int64_t group_size, int64_t x_bits, const Tensor& residual,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps,
    bool quantize, const std::optional<Tensor>& quant_weight,
    const std::optional<Tensor>& quant_bias) {
  const char* op = "lowbit_linear_layer_norm";
  Launch launch({x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits,
                 group_size, x_bits},
                op);
  LowbitParams& p = launch.params;
  const ScalarType dtype = residual.scalar_type();
  launch.set_residual(residual, dtype);
  const auto vector = [&](const std::optional<Tensor>& t, const char* name) {
    if (t) check_vector(*t, out_features, dtype, op, name);
    return data_or_null<void>(t);
  };
  p.weight = vector(norm_weight, "norm_weight");
  p.norm_bias = vector(norm_bias, "norm_bias");
  p.quant_weight = vector(quant_weight, "quant_weight");
  p.quant_bias = vector(quant_bias, "quant_bias");
  p.second_affine = p.quant_weight || p.quant_bias;
  p.eps = static_cast<float>(eps);
  p.norm = true;
  p.out_type = p.residual_type;
  p.q_bits = 8;
  const int64_t rows = quantize ? launch.rows() : 0;
  Tensor out = empty_cpu({launch.rows(), out_features}, dtype);
  Tensor q = empty_cpu({rows, quantize ? out_features : 0}, ScalarType::Char);
  Tensor q_scale = empty_cpu({rows, quantize ? 1 : 0}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.q = quantize ? static_cast<int8_t*>(q.mutable_data_ptr()) : nullptr;
  p.q_scale = static_cast<float*>(q_scale.mutable_data_ptr());
  launch.run(linear_layer_norm_variant);
  return {out, q, q_scale};
}

}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("lowbit_linear", TORCH_BOX(&taut::lowbit_linear));
  m.impl("lowbit_linear_quantize", TORCH_BOX(&taut::lowbit_linear_quantize));
  m.impl("lowbit_linear_layer_norm", TORCH_BOX(&taut::lowbit_linear_layer_norm));
}
