// Launchers of the quantize ops on CUDA. Rows too long for shared memory, and devices before sm_80,
// go on to Triton; Kronecker products are Triton's.
#include "common/quantize_check.h"
#include "cuda/fallback.h"
#include "cuda/inputs.h"
#include "cuda/launch.cuh"
#include "cuda/quantize.cuh"
#include "cuda/quantize.h"

namespace taut {
namespace {

int shared_bytes_of(int32_t device) {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// body(a number of the type of `dtype`), which is a checked one.
template <class Body>
void with_float(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Float) return body(float{});
  if (dtype == ScalarType::BFloat16) return body(bf16{});
  body(f16{});
}

void check_x(const Tensor& x, const char* op) {
  check(x.dim() == 2, op, "x must be (total_tokens, columns), got ", shape_of(x));
  check(x.size(1) > 0, op, "x must have at least one column, got ", shape_of(x));
  float_type(x.scalar_type(), op, "x");
}

}  // namespace

int64_t most_quantize_columns(int32_t device) { return shared_bytes_of(device) / 16 * 4; }

void run_quantize(const QuantizeParams& p, ScalarType dtype, int32_t device, cudaStream_t stream) {
  if (p.rows == 0) return;
  with_float(dtype, [&](auto element) {
    launch_quantize<decltype(element)>(p, shared_bytes_of(device), GridLaunch{stream});
  });
}

void run_norm_quantize(const NormQuantizeParams& p, ScalarType x_dtype, ScalarType dtype,
                       int32_t device, cudaStream_t stream) {
  if (p.rows == 0) return;
  const int shared_bytes = shared_bytes_of(device);
  with_float(dtype, [&](auto element) {
    using T = decltype(element);
    if (x_dtype == dtype) return launch_norm_quantize<T, T>(p, shared_bytes, GridLaunch{stream});
    launch_norm_quantize<float, T>(p, shared_bytes, GridLaunch{stream});
  });
}

namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor> quantize_per_token(const Tensor& x, const Optional& channel_scale,
                                              const Optional& channel_shift, int64_t bits,
                                              const std::string& grid, bool hadamard,
                                              int64_t group_size) {
  const char* op = "quantize_per_token";
  check_x(x, op);
  check_activation_bits(bits, op);
  check(group_size >= 0, op, "group_size must be 0 or more, got ", group_size);
  const int64_t rows = x.size(0), columns = x.size(1);
  check(!hadamard || columns % kHadamard == 0, op, "x must have a multiple of ", kHadamard,
        " columns, got ", columns);
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  Inputs inputs(op, device);
  QuantizeParams p{};
  const MatrixRows data = inputs.rows(x, rows, columns, x.scalar_type(), "x");
  p.x = data.data;
  p.x_stride = data.stride;
  p.channel_scale = static_cast<const float*>(
      inputs.vector(channel_scale, columns, ScalarType::Float, "channel_scale"));
  p.channel_shift = static_cast<const float*>(
      inputs.vector(channel_shift, columns, ScalarType::Float, "channel_shift"));
  p.rows = rows;
  p.columns = static_cast<int32_t>(columns);
  p.group_size = group_size && group_size < columns ? static_cast<int32_t>(group_size) : p.columns;
  p.groups = (p.columns - 1) / p.group_size + 1;
  p.bits = static_cast<int32_t>(bits);
  p.grid = parse_grid(grid, op);
  p.midrise_step = midrise_step(bits);
  p.hadamard = hadamard;
  Tensor q = empty_cuda({rows, columns}, ScalarType::Char, device);
  Tensor scale = empty_cuda({rows, p.groups}, ScalarType::Float, device);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.q_stride = columns;
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  run_quantize(p, x.scalar_type(), device, current_stream(device));
  record_variant(op, "native");
  return {q, scale};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_quantize(const Tensor& x, const Optional& residual,
                                                       const Optional& bias, const Optional& weight,
                                                       const Optional& norm_bias,
                                                       const Optional& quant_weight,
                                                       const Optional& quant_bias, double eps,
                                                       int64_t bits) {
  const char* op = "layer_norm_quantize";
  check_x(x, op);
  check_activation_bits(bits, op);
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  Inputs inputs(op, device);
  NormQuantizeParams p{};
  const MatrixRows data = inputs.rows(x, rows, columns, dtype, "x");
  const MatrixRows added = inputs.rows(residual, rows, columns, dtype, "residual");
  p.x = data.data;
  p.x_stride = data.stride;
  p.residual = added.data;
  p.residual_stride = added.stride;
  p.bias = inputs.vector(bias, columns, dtype, "bias");
  p.weight = inputs.vector(weight, columns, dtype, "weight");
  p.norm_bias = inputs.vector(norm_bias, columns, dtype, "norm_bias");
  p.quant_weight = inputs.vector(quant_weight, columns, dtype, "quant_weight");
  p.quant_bias = inputs.vector(quant_bias, columns, dtype, "quant_bias");
  p.own_affine = p.quant_weight || p.quant_bias;
  p.rows = rows;
  p.columns = static_cast<int32_t>(columns);
  p.bits = static_cast<int32_t>(bits);
  p.eps = static_cast<float>(eps);
  Tensor out = empty_cuda({rows, columns}, dtype, device);
  Tensor q = empty_cuda({rows, columns}, ScalarType::Char, device);
  Tensor scale = empty_cuda({rows, 1}, ScalarType::Float, device);
  p.out = out.mutable_data_ptr();
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  run_norm_quantize(p, dtype, dtype, device, current_stream(device));
  record_variant(op, "native");
  return {out, q, scale};
}

template <Boxed* native>
void short_rows_or_triton(const char* op, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const FirstTensor x(stack);
  if (x.is_on_sm80() && x.columns() <= most_quantize_columns(x.device))
    return native(stack, inputs, outputs);
  call_triton(op, stack);
}

void boxed_quantize(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  short_rows_or_triton<TORCH_BOX(&quantize_per_token)>("quantize_per_token", stack, inputs,
                                                       outputs);
}
void boxed_norm_quantize(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  short_rows_or_triton<TORCH_BOX(&layer_norm_quantize)>("layer_norm_quantize", stack, inputs,
                                                        outputs);
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CUDA, m) {
  m.impl("quantize_per_token", &taut::boxed_quantize);
  m.impl("layer_norm_quantize", &taut::boxed_norm_quantize);
}
