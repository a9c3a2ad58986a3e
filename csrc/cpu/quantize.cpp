// Launchers of the quantize ops on the CPU.
#include "cpu/quantize.h"

#include "common/quantize_check.h"
#include "cpu/launchers.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

VariantRecord quantize_per_token_variant("quantize_per_token");
VariantRecord layer_norm_quantize_variant("layer_norm_quantize");
VariantRecord kronecker_variant("kronecker");

void check_x(const Tensor& x, const char* op) {
  check_cpu(x, op, "x");
  if (x.dim() != 2) check(false, op, "x must be (total_tokens, columns), got ", shape_of(x));
  check(x.size(1) > 0, op, "x must have at least one column, got ", shape_of(x));
  check(has_contiguous_rows(x), op, "x must have contiguous rows");
}

}  // namespace

std::tuple<Tensor, Tensor> quantize_per_token(const Tensor& x, const Optional& channel_scale,
                                              const Optional& channel_shift, int64_t bits,
                                              const std::string& grid, bool hadamard,
                                              int64_t group_size) {
  const char* op = "quantize_per_token";
  check_x(x, op);
  const int64_t rows = x.size(0), columns = x.size(1);
  if (channel_scale) check_vector(*channel_scale, columns, ScalarType::Float, op, "channel_scale");
  if (channel_shift) check_vector(*channel_shift, columns, ScalarType::Float, op, "channel_shift");
  check_activation_bits(bits, op);
  check(group_size >= 0, op, "group_size must be 0 or more, got ", group_size);
  if (hadamard)
    check(columns % kHadamard == 0, op, "x must have a multiple of ", kHadamard, " columns, got ",
          columns);

  QuantizeParams p{};
  p.grid = parse_grid(grid, op);
  p.groups = group_size ? (columns - 1) / group_size + 1 : 1;
  Tensor q = empty_cpu({rows, columns}, ScalarType::Char);
  Tensor scale = empty_cpu({rows, p.groups}, ScalarType::Float);
  p.x = x.const_data_ptr();
  p.channel_scale = data_or_null<float>(channel_scale);
  p.channel_shift = data_or_null<float>(channel_shift);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  p.x_stride = x.stride(0);
  p.columns = columns;
  p.group_size = group_size;
  p.bits = bits;
  p.midrise_step = midrise_step(bits);
  p.hadamard = hadamard;
  QuantizeRows* kernel =
      float_kernel(x.scalar_type(), op, "x", TAUT_KERNEL(quantize_rows_f32),
                   TAUT_KERNEL(quantize_rows_bf16), TAUT_KERNEL(quantize_rows_f16));
  parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
    kernel(p, thread_scratch(columns), begin, end);
  });
  quantize_per_token_variant.record();
  return {std::move(q), std::move(scale)};
}

namespace {

std::tuple<Tensor, Tensor, Tensor> layer_norm_quantize(const Tensor& x, const Optional& residual,
                                                       const Optional& bias, const Optional& weight,
                                                       const Optional& norm_bias,
                                                       const Optional& quant_weight,
                                                       const Optional& quant_bias, double eps,
                                                       int64_t bits) {
  const char* op = "layer_norm_quantize";
  check_x(x, op);
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  if (residual) check_rows(*residual, rows, columns, dtype, op, "residual");
  if (bias) check_vector(*bias, columns, dtype, op, "bias");
  if (weight) check_vector(*weight, columns, dtype, op, "weight");
  if (norm_bias) check_vector(*norm_bias, columns, dtype, op, "norm_bias");
  if (quant_weight) check_vector(*quant_weight, columns, dtype, op, "quant_weight");
  if (quant_bias) check_vector(*quant_bias, columns, dtype, op, "quant_bias");
  check_activation_bits(bits, op);

  Tensor out = empty_cpu({rows, columns}, dtype);
  Tensor q = empty_cpu({rows, columns}, ScalarType::Char);
  Tensor scale = empty_cpu({rows, 1}, ScalarType::Float);
  NormQuantizeParams p{};
  p.x = x.const_data_ptr();
  p.residual = data_or_null(residual);
  p.bias = data_or_null(bias);
  p.weight = data_or_null(weight);
  p.norm_bias = data_or_null(norm_bias);
  p.quant_weight = data_or_null(quant_weight);
  p.quant_bias = data_or_null(quant_bias);
  p.out = out.mutable_data_ptr();
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  p.x_stride = x.stride(0);
  p.residual_stride = row_stride_or_0(residual);
  p.columns = columns;
  p.bits = bits;
  p.eps = static_cast<float>(eps);
  p.own_affine = quant_weight || quant_bias;
  NormQuantizeRows* kernel =
      float_kernel(dtype, op, "x", TAUT_KERNEL(norm_quantize_rows_f32),
                   TAUT_KERNEL(norm_quantize_rows_bf16), TAUT_KERNEL(norm_quantize_rows_f16));
  parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
    kernel(p, thread_scratch(columns), begin, end);
  });
  layer_norm_quantize_variant.record();
  return {std::move(out), std::move(q), std::move(scale)};
}

Tensor kronecker(const Tensor& x, const Tensor& left, const Tensor& right) {
  const char* op = "kronecker";
  check_x(x, op);
  const int64_t rows = x.size(0);
  const ScalarType dtype = x.scalar_type();
  for (const auto& [factor, name] : {std::pair(&left, "left"), std::pair(&right, "right")}) {
    if (factor->dim() != 2) check(false, op, name, " must be (n, n), got ", shape_of(*factor));
    check_rows(*factor, factor->size(0), factor->size(0), dtype, op, name);
    check(factor->is_contiguous(), op, name, " must be contiguous");
  }
  KroneckerParams p{};
  p.a = left.size(0);
  p.b = right.size(0);
  check(x.size(1) == p.a * p.b, op, "x must have ", p.a * p.b,
        " columns, rows of left times rows of right, got ", x.size(1));
  Tensor out = empty_cpu({rows, x.size(1)}, dtype);
  p.x = x.const_data_ptr();
  p.left = left.const_data_ptr();
  p.right = right.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.x_stride = x.stride(0);
  p.stride = (p.b + 15) / 16 * 16;
  KroneckerRows* kernel =
      float_kernel(dtype, op, "x", TAUT_KERNEL(kronecker_rows_f32),
                   TAUT_KERNEL(kronecker_rows_bf16), TAUT_KERNEL(kronecker_rows_f16));
  const int64_t scratch = p.stride * (p.b + 2 * p.a) + p.a * (p.a + p.b);
  // A column costs a + b multiplications, where rows are else cut as if it cost one.
  parallel_rows(rows, x.size(1) * (p.a + p.b) / 8, [&](int64_t begin, int64_t end) {
    kernel(p, thread_scratch(scratch), begin, end);
  });
  kronecker_variant.record();
  return out;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("quantize_per_token", TORCH_BOX(&taut::quantize_per_token));
  m.impl("layer_norm_quantize", TORCH_BOX(&taut::layer_norm_quantize));
  m.impl("kronecker", TORCH_BOX(&taut::kronecker));
}
