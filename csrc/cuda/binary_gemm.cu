// Launchers of packed signs and of linear layers over 1-bit weights on CUDA. Devices without
// products of bits go on to Triton.
#include "cuda/binary_arguments.h"
#include "cuda/binary_gemm_launch.cuh"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

Tensor empty_bits(int64_t rows, int64_t rails, int64_t words, int32_t device) {
  return rails == 1 ? empty_cuda({rows, words}, ScalarType::Long, device)
                    : empty_cuda({rows, rails, words}, ScalarType::Long, device);
}
const uint64_t* read_words(const Tensor& t) {
  return static_cast<const uint64_t*>(t.const_data_ptr());
}
uint64_t* write_words(const Tensor& t) { return static_cast<uint64_t*>(t.mutable_data_ptr()); }

int32_t columns_of(int64_t columns, const char* op, const char* name) {
  check(columns >= 0 && columns < int64_t{1} << 30, op, name,
        " must be at least 0 and below 2^30, got ", columns);
  return static_cast<int32_t>(columns);
}

// A matrix whose rows are contiguous, at any stride.
void check_rows(const Tensor& t, int64_t rows, int64_t columns, ScalarType dtype, int32_t device,
                const char* op, const char* name) {
  check_cuda(t, device, op, name);
  check(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, op, name, " must be (", rows,
        ", ", columns, "), got ", shape_of(t));
  check_dtype(t, dtype, op, name);
  check(columns <= 1 || t.stride(1) == 1, op, name, " must have contiguous rows");
}

// Bits of `columns` columns on one rail or two, words contiguous.
void check_bits(const Tensor& t, int64_t columns, int32_t device, const char* op,
                const char* name) {
  check_cuda(t, device, op, name);
  const int64_t words = (columns + kBitsPerWord - 1) / kBitsPerWord, dim = t.dim();
  check((dim == 2 || (dim == 3 && t.size(1) == 2)) && t.size(dim - 1) == words, op, name,
        " must be (rows, ", words, ") or (rows, 2, ", words, "), bits of ", columns,
        " columns, got ", shape_of(t));
  check_dtype(t, ScalarType::Long, op, name);
  check(words <= 1 || t.stride(dim - 1) == 1, op, name, " must have contiguous rows");
}

Tensor pack_bits(const Tensor& x, const Optional& threshold, int64_t rails, std::string tie) {
  const char* op = "pack_bits";
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  check(x.dim() == 2, op, "x must be (rows, columns), got ", shape_of(x));
  check(x.size(1) <= 1 || x.stride(1) == 1, op, "x must have contiguous rows");
  check(rails == 1 || rails == 2, op, "rails must be one of 1, 2, got ", rails);
  check(tie == "strict" || tie == "geq", op, "tie must be one of strict, geq, got ", tie);
  if (threshold)
    check_contiguous(*threshold, {x.size(1)}, ScalarType::Float, device, op, "threshold");
  PackBitsParams p{};
  p.x = x.const_data_ptr();
  p.threshold = data_or_null<float>(threshold);
  p.rows = x.size(0);
  p.x_stride = x.stride(0);
  p.columns = columns_of(x.size(1), op, "columns of x");
  p.rails = static_cast<int32_t>(rails);
  p.at_least = tie == "geq";
  const Tensor out = empty_bits(p.rows, rails, words_of(p.columns), device);
  p.out = write_words(out);
  launch_pack_bits(p, float_type(x.scalar_type(), op, "x"),
                   GridLaunch{device, current_stream(device)});
  record_variant(op, "native");
  return out;
}

Tensor unpack_bits(const Tensor& bits, int64_t columns) {
  const char* op = "unpack_bits";
  const int32_t device = bits.get_device_index();
  const DeviceGuard guard(device);
  UnpackBitsParams p{};
  p.columns = columns_of(columns, op, "columns");
  check_bits(bits, columns, device, op, "bits");
  p.bits = read_words(bits);
  p.rows = bits.size(0);
  p.bits_stride = bits.stride(0);
  p.rails = bits.dim() == 3 ? 2 : 1;
  p.rail_stride = bits.dim() == 3 ? bits.stride(1) : 0;
  const Tensor out = empty_cuda({p.rows, columns}, ScalarType::Char, device);
  p.out = static_cast<int8_t*>(out.mutable_data_ptr());
  launch_unpack_bits(p, GridLaunch{device, current_stream(device)});
  record_variant(op, "native");
  return out;
}

// The arguments that all linear layers share, checked, and the planes made of codes.
class BinaryLinearCall {
 public:
  BinaryLinearParams p{};
  const int32_t device;
  const DeviceGuard guard;
  const GridLaunch launch;

  BinaryLinearCall(const char* op, const Tensor& x, const Optional& x_scale, const Tensor& packed,
                   int64_t out_features, int64_t in_features)
      : device(x.get_device_index()),
        guard(device),
        launch{device, current_stream(device)},
        op_(op) {
    constexpr int64_t kMostInFeatures = 65536;
    check(in_features > 0 && in_features <= kMostInFeatures, op, "in_features must be from 1 to ",
          kMostInFeatures, ", got ", in_features);
    check(out_features > 0, op, "out_features must be at least 1, got ", out_features);
    p.in_features = static_cast<int32_t>(in_features);
    p.out_features = columns_of(out_features, op, "out_features");
    p.rows = x.dim() ? x.size(0) : 0;
    if (x.scalar_type() == ScalarType::Char) {
      check_rows(x, p.rows, in_features, ScalarType::Char, device, op, "x");
      check(x_scale.has_value(), op, "x_scale must be given with x of int8");
      check_contiguous(*x_scale, {p.rows, 1}, ScalarType::Float, device, op, "x_scale");
      set_planes(x);
    } else {
      check_bits(x, in_features, device, op, "x");
      check(!x_scale, op, "x_scale must be None with x of bits");
      p.input = x.dim() == 2 ? BinaryInput::one_rail : BinaryInput::two_rails;
      p.x = read_words(x);
      p.x_stride = x.stride(0);
      p.plane_stride = x.dim() == 3 ? x.stride(1) : 0;
    }
    p.x_scale = data_or_null<float>(x_scale);
    check_contiguous(packed, {words_of(p.out_features), words_of(p.in_features), kBitsPerWord},
                     ScalarType::Long, device, op, "packed");
    const bool aligned = reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 == 0;
    packed_ = aligned ? packed : torch::stable::clone(packed);
    p.packed = read_words(*packed_);
  }

  void set_scale(const Tensor& scale, const Optional& bias, const Optional& residual,
                 ScalarType residual_dtype) {
    check_contiguous(scale, {p.out_features}, ScalarType::Float, device, op_, "scale");
    if (bias) check_contiguous(*bias, {p.out_features}, ScalarType::Float, device, op_, "bias");
    if (residual)
      check_rows(*residual, p.rows, p.out_features, residual_dtype, device, op_, "residual");
    p.scale = scale.const_data_ptr<float>();
    p.bias = data_or_null<float>(bias);
    p.residual = data_or_null<void>(residual);
    p.residual_type = float_type(residual_dtype, op_, "residual");
    p.residual_stride = residual ? residual->stride(0) : 0;
  }

  Tensor run_to_floats(ScalarType dtype) {
    const Tensor out = empty_cuda({p.rows, p.out_features}, dtype, device);
    p.out = out.mutable_data_ptr();
    p.out_type = float_type(dtype, op_, "out_dtype");
    p.vectors = p.out_features % 4 == 0 && p.residual_stride % 4 == 0;
    for (const void* data : {static_cast<const void*>(p.scale), static_cast<const void*>(p.bias),
                             p.residual, static_cast<const void*>(p.out)})
      p.vectors = p.vectors && reinterpret_cast<uintptr_t>(data) % 16 == 0;
    launch_binary_linear(p, launch);
    return out;
  }

 private:
  void set_planes(const Tensor& codes) {
    const int64_t words = words_of(p.in_features);
    planes_ = empty_cuda({p.rows, kCodePlanes, words}, ScalarType::Long, device);
    highest_ = empty_cuda({p.rows}, ScalarType::Int, device);
    CodePlanesParams c{};
    c.codes = static_cast<const int8_t*>(codes.const_data_ptr());
    c.planes = write_words(*planes_);
    c.highest = static_cast<int32_t*>(highest_->mutable_data_ptr());
    c.rows = p.rows;
    c.codes_stride = codes.stride(0);
    c.columns = p.in_features;
    launch_code_planes(c, launch);
    p.input = BinaryInput::codes;
    p.x = c.planes;
    p.highest = c.highest;
    p.x_stride = kCodePlanes * words;
    p.plane_stride = words;
  }

  const char* op_;
  Optional packed_, planes_, highest_;
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
  record_variant(op, "native");
  return out;
}

Tensor binary_linear_bits(const Tensor& x, const Tensor& packed, const Tensor& thresholds,
                          int64_t out_features, int64_t in_features) {
  const char* op = "binary_linear_bits";
  check(x.scalar_type() != ScalarType::Char, op, "x must be int64 bits, got int8");
  BinaryLinearCall call(op, x, std::nullopt, packed, out_features, in_features);
  const bool two = thresholds.dim() == 2;
  if (two) {
    check_contiguous(thresholds, {3, out_features}, ScalarType::Int, call.device, op, "thresholds");
  } else {
    check_contiguous(thresholds, {out_features}, ScalarType::Int, call.device, op, "thresholds");
  }
  call.p.thresholds = thresholds.const_data_ptr<int32_t>();
  call.p.rails = two ? 2 : 1;
  const Tensor bits =
      empty_bits(call.p.rows, call.p.rails, words_of(call.p.out_features), call.device);
  call.p.bits = write_words(bits);
  launch_binary_linear(call.p, call.launch);
  record_variant(op, "native");
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
  if (weight) check_contiguous(*weight, {columns}, dtype, call.device, op, "norm_weight");
  if (norm_bias) check_contiguous(*norm_bias, {columns}, dtype, call.device, op, "norm_bias");
  if (bit_threshold)
    check_contiguous(*bit_threshold, {columns}, ScalarType::Float, call.device, op,
                     "bit_threshold");
  const Tensor total = call.run_to_floats(ScalarType::Float);
  BinaryNormParams n{};
  n.x = total.const_data_ptr<float>();
  n.type = call.p.residual_type;
  n.weight = data_or_null<void>(weight);
  n.bias = data_or_null<void>(norm_bias);
  n.threshold = data_or_null<float>(bit_threshold);
  n.eps = static_cast<float>(eps);
  n.rows = call.p.rows;
  n.columns = call.p.out_features;
  Tensor out = empty_cuda({n.rows, columns}, dtype, call.device);
  Tensor bits = empty_bits(n.rows, 1, words_of(n.columns), call.device);
  n.out = out.mutable_data_ptr();
  n.bits = write_words(bits);
  launch_binary_norm(n, call.launch);
  record_variant(op, "native");
  return {out, bits};
}

void boxed_pack_bits(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&pack_bits), is_on_sm80>("pack_bits", stack, inputs, outputs);
}
void boxed_unpack_bits(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&unpack_bits), is_on_sm80>("unpack_bits", stack, inputs, outputs);
}
void boxed_linear(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&binary_linear), has_bit_products>("binary_linear", stack, inputs,
                                                                outputs);
}
void boxed_linear_bits(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&binary_linear_bits), has_bit_products>("binary_linear_bits", stack,
                                                                     inputs, outputs);
}
void boxed_linear_layer_norm(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&binary_linear_layer_norm), has_bit_products>(
      "binary_linear_layer_norm", stack, inputs, outputs);
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
