// Launchers of packed signs and of linear layers over 1-bit weights on CUDA. Devices without
// products of bits go on to Triton.
#include "cuda/binary_arguments.h"
#include "cuda/binary_gemm.h"
#include "cuda/binary_gemm_launch.cuh"
#include "cuda/build.h"
#include "cuda/launch.cuh"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

int32_t columns_of(int64_t columns, const char* op, const char* name) {
  check(columns >= 0 && columns < int64_t{1} << 30, op, name,
        " must be at least 0 and below 2^30, got ", columns);
  return static_cast<int32_t>(columns);
}

// Bits of `columns` columns on one rail or two.
struct BitPlanes {
  const uint64_t* data;
  int64_t rows, row_stride, rail_stride;
  int32_t rails;
};

BitPlanes bit_planes(const Tensor& t, int64_t columns, Inputs& inputs, int32_t device,
                     const char* op, const char* name) {
  check_cuda(t, device, op, name);
  const int64_t words = (columns + kBitsPerWord - 1) / kBitsPerWord, dim = t.dim();
  check((dim == 2 || (dim == 3 && t.size(1) == 2)) && t.size(dim - 1) == words, op, name,
        " must be (rows, ", words, ") or (rows, 2, ", words, "), bits of ", columns,
        " columns, got ", shape_of(t));
  check_dtype(t, ScalarType::Long, op, name);
  const int32_t rails = dim == 3 ? 2 : 1;
  if (words <= 1 || t.stride(dim - 1) == 1)
    return {read_words(t), t.size(0), t.stride(0), rails == 2 ? t.stride(1) : 0, rails};
  const void* data = inputs.contiguous(t);
  return {static_cast<const uint64_t*>(data), t.size(0), rails * words, words, rails};
}

Tensor pack_bits(const Tensor& x, const Optional& threshold, int64_t rails, std::string tie) {
  const char* op = "pack_bits";
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  Inputs inputs(op, device);
  check(x.dim() == 2, op, "x must be (rows, columns), got ", shape_of(x));
  check(rails == 1 || rails == 2, op, "rails must be one of 1, 2, got ", rails);
  check(tie == "strict" || tie == "geq", op, "tie must be one of strict, geq, got ", tie);
  const FloatType type = float_type(x.scalar_type(), op, "x");
  const MatrixRows rows = inputs.rows(x, x.size(0), x.size(1), x.scalar_type(), "x");
  PackBitsParams p{};
  p.x = rows.data;
  p.x_stride = rows.stride;
  p.threshold = static_cast<const float*>(
      inputs.vector(threshold, x.size(1), ScalarType::Float, "threshold"));
  p.rows = x.size(0);
  p.columns = columns_of(x.size(1), op, "columns of x");
  p.rails = static_cast<int32_t>(rails);
  p.at_least = tie == "geq";
  Tensor out = empty_bits(p.rows, rails, words_of(p.columns), device);
  p.out = write_words(out);
  if (out.numel() > 0) launch_pack_bits(p, type, GridLaunch{current_stream(device)});
  record_variant(op, "native");
  return out;
}

Tensor unpack_bits(const Tensor& bits, int64_t columns) {
  const char* op = "unpack_bits";
  const int32_t device = bits.get_device_index();
  const DeviceGuard guard(device);
  Inputs inputs(op, device);
  UnpackBitsParams p{};
  p.columns = columns_of(columns, op, "columns");
  const BitPlanes planes = bit_planes(bits, columns, inputs, device, op, "bits");
  p.bits = planes.data;
  p.rows = planes.rows;
  p.bits_stride = planes.row_stride;
  p.rail_stride = planes.rail_stride;
  p.rails = planes.rails;
  Tensor out = empty_cuda({p.rows, columns}, ScalarType::Char, device);
  p.out = static_cast<int8_t*>(out.mutable_data_ptr());
  if (out.numel() > 0) launch_unpack_bits(p, GridLaunch{current_stream(device)});
  record_variant(op, "native");
  return out;
}

// The arguments that all linear layers share, checked, and the planes made of codes.
class BinaryLinearCall {
 public:
  const int32_t device;
  const DeviceGuard guard;
  const GridLaunch launch;
  Inputs inputs;
  BinaryLinearParams p{};

  BinaryLinearCall(const char* op, const Tensor& x, const Optional& x_scale, const Tensor& packed,
                   int64_t out_features, int64_t in_features)
      : device(x.get_device_index()),
        guard(device),
        launch{current_stream(device)},
        inputs(op, device),
        op_(op) {
    constexpr int64_t kMostInFeatures = 65536;
    check(in_features > 0 && in_features <= kMostInFeatures, op, "in_features must be from 1 to ",
          kMostInFeatures, ", got ", in_features);
    check(out_features > 0, op, "out_features must be at least 1, got ", out_features);
    p.in_features = static_cast<int32_t>(in_features);
    p.out_features = columns_of(out_features, op, "out_features");
    if (x.scalar_type() == ScalarType::Char) {
      set_codes(x, x_scale);
    } else {
      const BitPlanes planes = bit_planes(x, in_features, inputs, device, op, "x");
      check(!x_scale, op, "x_scale must be None with x of bits");
      p.input = planes.rails == 1 ? BinaryInput::one_rail : BinaryInput::two_rails;
      p.x = planes.data;
      p.rows = planes.rows;
      p.x_stride = planes.row_stride;
      p.plane_stride = planes.rail_stride;
    }
    const int64_t panels = words_of(p.out_features), words = words_of(p.in_features);
    check_cuda(packed, device, op, "packed");
    check(packed.dim() == 3 && packed.size(0) == panels && packed.size(1) == words &&
              packed.size(2) == kBitsPerWord,
          op, "packed must be (", panels, ", ", words, ", 64), got ", shape_of(packed));
    check_dtype(packed, ScalarType::Long, op, "packed");
    p.packed = static_cast<const uint64_t*>(inputs.aligned(packed));
  }

  void set_scale(const Tensor& scale, const Optional& bias, const Optional& residual,
                 ScalarType residual_dtype) {
    p.scale = floats(scale, "scale");
    p.bias = floats(bias, "bias");
    const MatrixRows rows =
        inputs.rows(residual, p.rows, p.out_features, residual_dtype, "residual");
    p.residual = rows.data;
    p.residual_stride = rows.stride;
    p.residual_type = float_type(residual_dtype, op_, "residual");
  }

  const float* floats(const Optional& t, const char* name) {
    return static_cast<const float*>(inputs.vector(t, p.out_features, ScalarType::Float, name));
  }

  Tensor run_to_floats(ScalarType dtype) {
    Tensor out = empty_cuda({p.rows, p.out_features}, dtype, device);
    p.out = out.mutable_data_ptr();
    p.out_type = float_type(dtype, op_, "out_dtype");
    p.vectors = p.out_features % 4 == 0 && p.residual_stride % 4 == 0;
    for (const void* data : {static_cast<const void*>(p.scale), static_cast<const void*>(p.bias),
                             p.residual, static_cast<const void*>(p.out)})
      p.vectors = p.vectors && reinterpret_cast<uintptr_t>(data) % 16 == 0;
    multiply();
    return out;
  }

  Tensor run_to_bits(const Tensor& thresholds) {
    p.rails = thresholds.dim() == 2 ? 2 : 1;
    p.thresholds = thresholds_of(thresholds, {p.out_features}, p.rails, inputs, device, op_);
    Tensor bits = empty_bits(p.rows, p.rails, words_of(p.out_features), device);
    p.bits = write_words(bits);
    multiply();
    return bits;
  }

  // Which kernel ran, for record_variant.
  const char* variant() const { return variant_; }

 private:
  void multiply() {
    if (p.rows == 0) return;
    if constexpr (kHasHopper) {
      if (compute_capability(device) == 90 &&
          choose_binary_tiles(p.rows, p.out_features) == BinaryTiles::rows_128) {
        variant_ = "native/hopper";
        return run_binary_wgmma(p, launch.stream);
      }
    }
    launch_binary_linear(p, launch);
  }

  void set_codes(const Tensor& x, const Optional& x_scale) {
    const int64_t words = words_of(p.in_features);
    p.rows = x.dim() ? x.size(0) : 0;
    const MatrixRows codes = inputs.rows(x, p.rows, p.in_features, ScalarType::Char, "x");
    check(x_scale.has_value(), op_, "x_scale must be given with x of int8");
    p.x_scale =
        static_cast<const float*>(inputs.matrix(x_scale, p.rows, 1, ScalarType::Float, "x_scale"));
    const Tensor planes = empty_cuda({p.rows, kCodePlanes, words}, ScalarType::Long, device);
    const Tensor highest = empty_cuda({p.rows}, ScalarType::Int, device);
    CodePlanesParams c{};
    c.codes = static_cast<const int8_t*>(codes.data);
    c.planes = write_words(planes);
    c.highest = static_cast<int32_t*>(highest.mutable_data_ptr());
    c.rows = p.rows;
    c.codes_stride = codes.stride;
    c.columns = p.in_features;
    if (p.rows > 0) launch_code_planes(c, launch);
    p.input = BinaryInput::codes;
    p.x = static_cast<const uint64_t*>(inputs.keep(planes));
    p.highest = static_cast<const int32_t*>(inputs.keep(highest));
    p.x_stride = kCodePlanes * words;
    p.plane_stride = words;
  }

  const char* op_;
  const char* variant_ = "native";
};

Tensor binary_linear(const Tensor& x, const Optional& x_scale, const Tensor& packed,
                     const Tensor& scale, const Optional& bias, int64_t out_features,
                     int64_t in_features, std::string epilogue, const Optional& residual,
                     std::optional<ScalarType> out_dtype) {
  const char* op = "binary_linear";
  const ScalarType dtype = out_dtype.value_or(ScalarType::Float);
  BinaryLinearCall call(op, x, x_scale, packed, out_features, in_features);
  call.set_scale(scale, bias, residual, dtype);
  call.p.activation = parse_activation(epilogue, op);
  Tensor out = call.run_to_floats(dtype);
  record_variant(op, call.variant());
  return out;
}

Tensor binary_linear_bits(const Tensor& x, const Tensor& packed, const Tensor& thresholds,
                          int64_t out_features, int64_t in_features) {
  const char* op = "binary_linear_bits";
  check(x.scalar_type() != ScalarType::Char, op, "x must be int64 bits, got int8");
  BinaryLinearCall call(op, x, std::nullopt, packed, out_features, in_features);
  Tensor bits = call.run_to_bits(thresholds);
  record_variant(op, call.variant());
  return bits;
}

std::tuple<Tensor, Tensor> binary_linear_layer_norm(const Tensor& x, const Optional& x_scale,
                                                    const Tensor& packed, const Tensor& scale,
                                                    const Optional& bias, int64_t in_features,
                                                    const Tensor& residual, const Optional& weight,
                                                    const Optional& norm_bias, double eps,
                                                    const Optional& bit_threshold) {
  const char* op = "binary_linear_layer_norm";
  check(residual.dim() == 2, op, "residual must be (rows, out_features), got ", shape_of(residual));
  const int64_t columns = residual.size(1);
  const ScalarType dtype = residual.scalar_type();
  BinaryLinearCall call(op, x, x_scale, packed, columns, in_features);
  call.set_scale(scale, bias, residual, dtype);
  const Tensor total = call.run_to_floats(ScalarType::Float);
  BinaryNormParams n{};
  n.x = total.const_data_ptr<float>();
  n.type = call.p.residual_type;
  n.weight = call.inputs.vector(weight, columns, dtype, "norm_weight");
  n.bias = call.inputs.vector(norm_bias, columns, dtype, "norm_bias");
  n.threshold = call.floats(bit_threshold, "bit_threshold");
  n.eps = static_cast<float>(eps);
  n.rows = call.p.rows;
  n.columns = call.p.out_features;
  Tensor out = empty_cuda({n.rows, columns}, dtype, call.device);
  Tensor bits = empty_bits(n.rows, 1, words_of(n.columns), call.device);
  n.out = out.mutable_data_ptr();
  n.bits = write_words(bits);
  if (n.rows > 0) launch_binary_norm(n, call.launch);
  record_variant(op, call.variant());
  return {out, bits};
}

// Packing and unpacking multiply nothing.
template <Boxed* native>
void sm80_or_triton(const char* op, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  if (FirstTensor(stack).is_on_sm80()) return native(stack, inputs, outputs);
  call_triton(op, stack);
}

void boxed_pack_bits(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  sm80_or_triton<TORCH_BOX(&pack_bits)>("pack_bits", stack, inputs, outputs);
}
void boxed_unpack_bits(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  sm80_or_triton<TORCH_BOX(&unpack_bits)>("unpack_bits", stack, inputs, outputs);
}
void boxed_linear(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  bits_or_triton<TORCH_BOX(&binary_linear)>("binary_linear", stack, inputs, outputs);
}
void boxed_linear_bits(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  bits_or_triton<TORCH_BOX(&binary_linear_bits)>("binary_linear_bits", stack, inputs, outputs);
}
void boxed_linear_layer_norm(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  bits_or_triton<TORCH_BOX(&binary_linear_layer_norm)>("binary_linear_layer_norm", stack, inputs,
                                                       outputs);
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CUDA, m) {
  m.impl("pack_bits", &taut::boxed_pack_bits);
  m.impl("unpack_bits", &taut::boxed_unpack_bits);
  m.impl("binary_linear", &taut::boxed_linear);
  m.impl("binary_linear_bits", &taut::boxed_linear_bits);
  m.impl("binary_linear_layer_norm", &taut::boxed_linear_layer_norm);
}
