// Launchers of the linear layers over low-bit weights on CUDA. Activations that stay fp32, rows too
// long for shared memory, and devices before sm_80 go on to Triton.
#include "common/quantize_grid.h"
#include "cuda/fallback.h"
#include "cuda/inputs.h"
#include "cuda/launch.cuh"
#include "cuda/lowbit_gemm.h"
#include "cuda/quantize.h"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

// 128 * 128 * 65536 < 2^31: sums stay within int32.
constexpr int64_t kMostFeatures = 65536;
constexpr int64_t kMostSize = int64_t{1} << 30;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_group_size(int64_t size, const char* op, const char* name) {
  check(size == 0 || size == 32 || size == 64 || size == 128 || size == 256, op, name,
        " must be one of 0, 32, 64, 128, 256, got ", size);
}

// The arguments of all three ops, in the schema's order.
struct Operands {
  const Tensor& x;
  const Optional& x_scale;
  const Tensor& packed;
  const Tensor& scale;
  const Optional& zero_point;
  const Optional& codebook;
  const Optional& bias;
  int64_t out_features, bits, group_size, x_bits;
};

class LowbitLaunch {
 public:
  LowbitParams params{};

  // Checks the operands; quantizes x where that is asked for, or aligns it.
  LowbitLaunch(const Operands& o, const char* op)
      : op_(op),
        device_(o.x.get_device_index()),
        guard_(device_),
        inputs_(op, device_),
        stream_(current_stream(device_)),
        bits_(o.bits),
        x_dtype_(o.x.scalar_type()) {
    LowbitParams& p = params;
    check(o.x.dim() == 2, op, "x must be (total_tokens, in_features), got ", shape_of(o.x));
    const int64_t features = o.x.size(1);
    p.rows = o.x.size(0);
    check_weight(o, features);
    p.in_features = static_cast<int32_t>(features);
    p.out_features = static_cast<int32_t>(o.out_features);
    p.packed = static_cast<const uint8_t*>(inputs_.aligned(o.packed));
    p.group_size = static_cast<int32_t>(o.group_size ? o.group_size : features);
    p.groups = static_cast<int32_t>(divide_up(features, p.group_size));
    p.scale = floats(o.scale, o.out_features, p.groups, "scale");
    p.zero_point = floats(o.zero_point, o.out_features, p.groups, "zero_point");
    if (o.bias) {
      p.bias_type = float_type(o.bias->scalar_type(), op, "bias");
      p.bias = inputs_.vector(o.bias, o.out_features, o.bias->scalar_type(), "bias");
    }
    if (o.x.scalar_type() == ScalarType::Char) {
      check(o.x_scale.has_value(), op, "x_scale must be given with x of int8, got None");
      set_x(o.x);
      set_x_scale(*o.x_scale);
    } else {
      float_type(o.x.scalar_type(), op, "x");
      check(!o.x_scale, op, "x_scale must be None unless x is int8");
      o.x_bits ? quantize(o.x, o.x_bits) : set_x(o.x);
    }
    check(!o.codebook || !is_integer(), op, "x_bits must be 0 with a codebook, got ", o.x_bits);
    check(!is_integer() || features <= kMostFeatures, op, "in_features must be at most ",
          kMostFeatures, " for integer products, got ", features);
    if (o.codebook) set_codebook(*o.codebook);
  }

  bool is_integer() const { return x_dtype_ == ScalarType::Char; }

  int32_t device() const { return device_; }
  cudaStream_t stream() const { return stream_; }
  Inputs& inputs() { return inputs_; }

  Tensor empty(int64_t rows, int64_t columns, ScalarType dtype) const {
    return empty_cuda({rows, columns}, dtype, device_);
  }

  void set_residual(const Tensor& residual, ScalarType dtype) {
    const MatrixRows rows =
        inputs_.rows(residual, params.rows, params.out_features, dtype, "residual");
    params.residual = rows.data;
    params.residual_stride = rows.stride;
    params.residual_type = float_type(dtype, op_, "residual");
  }

  // The result, of `dtype`.
  Tensor run(ScalarType dtype) {
    Tensor out = empty(params.rows, params.out_features, dtype);
    params.out = out.mutable_data_ptr();
    params.out_type = float_type(dtype, op_, "out_dtype");
    launch();
    return out;
  }

  void launch() {
    if (params.rows > 0) variant_ = launch_rows();
  }

  const char* variant() const { return variant_; }

 private:
  const char* launch_rows() const {
    const LowbitDevice device{device_attribute(cudaDevAttrMultiProcessorCount, device_),
                              compute_capability(device_) == 90};
    switch (bits_) {
      case 2: return run_lowbit_linear<2>(params, x_dtype_, device, stream_);
      case 3: return run_lowbit_linear<3>(params, x_dtype_, device, stream_);
      case 4: return run_lowbit_linear<4>(params, x_dtype_, device, stream_);
      default: return run_lowbit_linear<8>(params, x_dtype_, device, stream_);
    }
  }

  void check_weight(const Operands& o, int64_t features) const {
    check(o.bits == 2 || o.bits == 3 || o.bits == 4 || o.bits == 8, op_,
          "bits must be one of 2, 3, 4, 8, got ", o.bits);
    for (const int64_t size : {features, o.out_features})
      check(size > 0 && size < kMostSize, op_, "in_features and out_features must be from 1 to ",
            kMostSize, ", got ", size);
    check_group_size(o.group_size, op_, "group_size");
    check(o.x_bits == 0 || o.x_bits == 4 || o.x_bits == 8, op_,
          "x_bits must be one of 0, 4, 8, got ", o.x_bits);
    check_cuda(o.packed, device_, op_, "packed");
    check_dtype(o.packed, ScalarType::Byte, op_, "packed");
    const Tensor& t = o.packed;
    if (t.dim() != 5 || t.size(0) != divide_up(o.out_features, kLowbitPanel) ||
        t.size(1) != divide_up(features, kLowbitBlock) || t.size(2) != 2 * o.bits ||
        t.size(3) != kLowbitPanel || t.size(4) != 4)
      check(false, op_, "packed must be pack_lowbit of a (", o.out_features, ", ", features,
            ") weight of ", o.bits, " bits, got ", shape_of(t));
  }

  const float* floats(const Optional& t, int64_t rows, int64_t columns, const char* name) {
    return static_cast<const float*>(inputs_.matrix(t, rows, columns, ScalarType::Float, name));
  }

  // Rows of x as they are, or copies of them from whole 16 bytes on.
  void set_x(const Tensor& x) {
    LowbitParams& p = params;
    const int64_t bytes = is_integer() ? 1 : 2;
    MatrixRows rows = inputs_.rows(x, p.rows, p.in_features, x_dtype_, "x");
    p.x = rows.data;
    p.x_stride = rows.stride;
    const bool starts_align = reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
    if (starts_align && (p.rows <= 1 || bytes * rows.stride % 16 == 0)) return;
    // A pitch of cudaMemcpy2D is at least a row and below 2^31.
    const int64_t width = bytes * p.in_features, pitch = bytes * rows.stride;
    if (p.rows > 1 && (pitch < width || pitch > INT32_MAX))
      rows = {inputs_.keep(torch::stable::contiguous(x)), p.in_features};
    const Tensor copy = aligned_rows();
    if (p.rows == 0) return;
    check_cuda_call(cudaMemcpy2DAsync(copy.mutable_data_ptr(), bytes * p.x_stride, rows.data,
                                      p.rows > 1 ? bytes * rows.stride : width, width, p.rows,
                                      cudaMemcpyDeviceToDevice, stream_),
                    "cudaMemcpy2DAsync");
  }
  // Memory for rows of x; what lies behind their ends is never read.
  Tensor aligned_rows() {
    LowbitParams& p = params;
    p.x_stride = divide_up(p.in_features, 16) * 16;
    Tensor rows = empty(p.rows, p.x_stride, x_dtype_);
    p.x = inputs_.keep(rows);
    return rows;
  }

  void set_x_scale(const Tensor& x_scale) {
    LowbitParams& p = params;
    if (x_scale.dim() != 2 || (x_scale.size(1) != 1 && x_scale.size(1) != p.groups))
      check(false, op_, "x_scale must be (", p.rows, ", 1 or ", p.groups, "), got ",
            shape_of(x_scale));
    p.x_groups = static_cast<int32_t>(x_scale.size(1));
    const MatrixRows scales =
        inputs_.rows(x_scale, p.rows, p.x_groups, ScalarType::Float, "x_scale");
    p.x_scale = static_cast<const float*>(scales.data);
    p.x_scale_stride = scales.stride;
  }

  void set_codebook(const Tensor& codebook) {
    const int64_t size = int64_t{1} << bits_;
    if (codebook.dim() == 1) {
      params.codebook =
          static_cast<const float*>(inputs_.vector(codebook, size, ScalarType::Float, "codebook"));
      return;
    }
    params.codebook = floats(codebook, params.out_features, size, "codebook");
    params.codebook_stride = static_cast<int32_t>(size);
  }

  void quantize(const Tensor& x, int64_t bits) {
    LowbitParams& p = params;
    const MatrixRows rows = inputs_.rows(x, p.rows, p.in_features, x.scalar_type(), "x");
    x_dtype_ = ScalarType::Char;
    const Tensor codes = aligned_rows(), scale = empty(p.rows, 1, ScalarType::Float);
    p.x_scale = static_cast<const float*>(inputs_.keep(scale));
    p.x_groups = 1;
    p.x_scale_stride = 1;
    QuantizeParams q{};
    q.x = rows.data;
    q.x_stride = rows.stride;
    q.q = static_cast<int8_t*>(codes.mutable_data_ptr());
    q.q_stride = p.x_stride;
    q.scale = static_cast<float*>(scale.mutable_data_ptr());
    q.rows = p.rows;
    q.columns = q.group_size = p.in_features;
    q.groups = 1;
    q.bits = static_cast<int32_t>(bits);
    run_quantize(q, x.scalar_type(), device_, stream_);
  }

  const char* op_;
  int32_t device_;
  DeviceGuard guard_;
  Inputs inputs_;
  cudaStream_t stream_;
  int64_t bits_;
  ScalarType x_dtype_;  // as products take it
  const char* variant_ = "native";
};

Tensor lowbit_linear(const Tensor& x, const Optional& x_scale, const Tensor& packed,
                     const Tensor& scale, const Optional& zero_point, const Optional& codebook,
                     const Optional& bias, int64_t out_features, int64_t bits, int64_t group_size,
                     int64_t x_bits, const std::string& epilogue, const Optional& residual,
                     double x_zero_point, std::optional<ScalarType> out_dtype) {
  const char* op = "lowbit_linear";
  LowbitLaunch launch({x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits,
                       group_size, x_bits},
                      op);
  const ScalarType dtype = out_dtype.value_or(x.scalar_type());
  check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
        op, "out_dtype must be float32, bfloat16, float16, got ", dtype_name(dtype));
  launch.params.activation = parse_activation(epilogue, op);
  launch.params.x_zero_point = static_cast<float>(x_zero_point);
  if (residual) launch.set_residual(*residual, dtype);
  Tensor out = launch.run(dtype);
  record_variant(op, launch.variant());
  return out;
}

std::tuple<Tensor, Tensor> lowbit_linear_quantize(
    const Tensor& x, const Optional& x_scale, const Tensor& packed, const Tensor& scale,
    const Optional& zero_point, const Optional& codebook, const Optional& bias,
    int64_t out_features, int64_t bits, int64_t group_size, int64_t x_bits,
    const std::string& epilogue, int64_t out_bits, int64_t out_group_size) {
  const char* op = "lowbit_linear_quantize";
  LowbitLaunch launch({x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits,
                       group_size, x_bits},
                      op);
  LowbitParams& p = launch.params;
  p.activation = parse_activation(epilogue, op);
  check(out_bits == 4 || out_bits == 8, op, "out_bits must be one of 4, 8, got ", out_bits);
  check_group_size(out_group_size, op, "out_group_size");
  const int64_t size =
      out_group_size && out_group_size < out_features ? out_group_size : out_features;
  const int64_t groups = divide_up(out_features, size);
  Tensor q = launch.empty(p.rows, out_features, ScalarType::Char);
  Tensor q_scale = launch.empty(p.rows, groups, ScalarType::Float);
  QuantizeParams rest{};
  rest.q = static_cast<int8_t*>(q.mutable_data_ptr());
  rest.scale = static_cast<float*>(q_scale.mutable_data_ptr());
  if (launch.is_integer() && 0 < out_group_size && out_group_size <= kMostTileColumns) {
    p.q = rest.q;
    p.q_scale = rest.scale;
    p.q_group_size = static_cast<int32_t>(out_group_size);
    p.q_bits = static_cast<int32_t>(out_bits);
    launch.launch();
  } else {  // no tile holds a group
    const Tensor total = launch.run(ScalarType::Float);
    rest.x = total.const_data_ptr();
    rest.x_stride = rest.q_stride = out_features;
    rest.rows = p.rows;
    rest.columns = p.out_features;
    rest.group_size = static_cast<int32_t>(size);
    rest.groups = static_cast<int32_t>(groups);
    rest.bits = static_cast<int32_t>(out_bits);
    run_quantize(rest, ScalarType::Float, launch.device(), launch.stream());
  }
  record_variant(op, launch.variant());
  return {q, q_scale};
}

std::tuple<Tensor, Tensor, Tensor> lowbit_linear_layer_norm(
    const Tensor& x, const Optional& x_scale, const Tensor& packed, const Tensor& scale,
    const Optional& zero_point, const Optional& codebook, const Optional& bias,
    int64_t out_features, int64_t bits, int64_t group_size, int64_t x_bits, const Tensor& residual,
    const Optional& norm_weight, const Optional& norm_bias, double eps, bool quantize,
    const Optional& quant_weight, const Optional& quant_bias) {
  const char* op = "lowbit_linear_layer_norm";
  LowbitLaunch launch({x, x_scale, packed, scale, zero_point, codebook, bias, out_features, bits,
                       group_size, x_bits},
                      op);
  const int64_t rows = launch.params.rows, columns = out_features;
  const ScalarType dtype = residual.scalar_type();
  float_type(residual.scalar_type(), op, "residual");
  Inputs& inputs = launch.inputs();
  NormQuantizeParams p{};
  const MatrixRows added = inputs.rows(residual, rows, columns, dtype, "residual");
  p.residual = added.data;
  p.residual_stride = added.stride;
  p.weight = inputs.vector(norm_weight, columns, dtype, "norm_weight");
  p.norm_bias = inputs.vector(norm_bias, columns, dtype, "norm_bias");
  p.quant_weight = inputs.vector(quant_weight, columns, dtype, "quant_weight");
  p.quant_bias = inputs.vector(quant_bias, columns, dtype, "quant_bias");
  p.own_affine = p.quant_weight || p.quant_bias;
  p.rows = rows;
  p.columns = launch.params.out_features;
  p.bits = 8;
  p.eps = static_cast<float>(eps);
  Tensor out = launch.empty(rows, columns, dtype);
  Tensor q = launch.empty(quantize ? rows : 0, quantize ? columns : 0, ScalarType::Char);
  Tensor q_scale = launch.empty(quantize ? rows : 0, quantize ? 1 : 0, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.q = quantize ? static_cast<int8_t*>(q.mutable_data_ptr()) : nullptr;
  p.scale = static_cast<float*>(q_scale.mutable_data_ptr());
  const Tensor total = launch.run(ScalarType::Float);
  p.x = total.const_data_ptr();
  p.x_stride = columns;
  run_norm_quantize(p, ScalarType::Float, dtype, launch.device(), launch.stream());
  record_variant(op, launch.variant());
  return {out, q, q_scale};
}

// Whether products are of integers, fp16 or bf16, and every row that is quantized or normalised
// fits.
bool is_served(const StableIValue* stack, bool finishes_rows) {
  constexpr int kOutFeatures = 7, kXBits = 10;  // of the schemas' arguments
  const FirstTensor x(stack);
  if (!x.is_on_sm80()) return false;
  const int64_t most = most_quantize_columns(x.device);
  if (finishes_rows && torch::stable::detail::to<int64_t>(stack[kOutFeatures]) > most) return false;
  if (x.is_int8()) return true;
  const bool quantizes = torch::stable::detail::to<int64_t>(stack[kXBits]) != 0;
  return quantizes ? x.columns() <= most : x.is_half();
}

template <Boxed* native>
void served_or_triton(const char* op, bool finishes_rows, StableIValue* stack, uint64_t inputs,
                      uint64_t outputs) {
  if (is_served(stack, finishes_rows)) return native(stack, inputs, outputs);
  call_triton(op, stack);
}

void boxed_linear(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  served_or_triton<TORCH_BOX(&lowbit_linear)>("lowbit_linear", false, stack, inputs, outputs);
}
void boxed_linear_quantize(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  served_or_triton<TORCH_BOX(&lowbit_linear_quantize)>("lowbit_linear_quantize", true, stack,
                                                       inputs, outputs);
}
void boxed_linear_layer_norm(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  served_or_triton<TORCH_BOX(&lowbit_linear_layer_norm)>("lowbit_linear_layer_norm", true, stack,
                                                         inputs, outputs);
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CUDA, m) {
  m.impl("lowbit_linear", &taut::boxed_linear);
  m.impl("lowbit_linear_quantize", &taut::boxed_linear_quantize);
  m.impl("lowbit_linear_layer_norm", &taut::boxed_linear_layer_norm);
}
