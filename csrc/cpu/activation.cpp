// Launchers of the activation ops on the CPU.
#include "cpu/activation.h"

#include "cpu/column_sums_launcher.h"
#include "cpu/launchers.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

VariantRecord bias_activation_variant("bias_activation");
VariantRecord bias_activation_backward_variant("bias_activation_backward");
VariantRecord bias_glu_variant("bias_glu");
VariantRecord bias_glu_backward_variant("bias_glu_backward");

void check_activation(const char* op, const Tensor& x, const Optional& bias, bool gated) {
  if (x.dim() != 2) check(false, op, "x must be (total_tokens, columns), got ", shape_of(x));
  const int64_t columns = x.size(1);
  check(has_contiguous_rows(x), op, "x must have contiguous rows");
  if (gated && columns % 2 != 0)
    check(false, op, "x must have an even number of columns, got ", shape_of(x));
  if (bias) check_vector(*bias, columns, x.scalar_type(), op, "bias");
}

Tensor run_activation(const char* op, const Tensor& x, const Optional& bias,
                      const std::string& activation, bool gated) {
  check_activation(op, x, bias, gated);
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  ActivationRows* kernel =
      float_kernel(dtype, op, "x", TAUT_KERNEL(activation_rows_f32),
                   TAUT_KERNEL(activation_rows_bf16), TAUT_KERNEL(activation_rows_f16));
  ActivationParams p{};
  p.activation = parse_activation(activation, op);
  p.gated = gated;
  Tensor out = empty_cpu({rows, gated ? columns / 2 : columns}, dtype);
  p.x = x.const_data_ptr();
  p.bias = data_or_null(bias);
  p.out = out.mutable_data_ptr();
  p.x_stride = x.stride(0);
  p.columns = columns;
  parallel_rows(rows, columns, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> run_activation_backward(const char* op, const Tensor& grad_out,
                                                   const Tensor& x, const Optional& bias,
                                                   const std::string& activation, bool gated) {
  check_activation(op, x, bias, gated);
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  check_rows(grad_out, rows, gated ? columns / 2 : columns, dtype, op, "grad_out");
  ActivationBackwardBlock* kernel = float_kernel(
      dtype, op, "x", TAUT_KERNEL(activation_backward_block_f32),
      TAUT_KERNEL(activation_backward_block_bf16), TAUT_KERNEL(activation_backward_block_f16));
  ActivationBackwardParams p{};
  p.activation = parse_activation(activation, op);
  p.gated = gated;
  const int64_t blocks = bias ? sum_blocks(rows) : 0;
  Tensor dx = empty_cpu({rows, columns}, dtype);
  Tensor partials = empty_cpu({blocks, columns}, ScalarType::Float);
  p.grad_out = grad_out.const_data_ptr();
  p.x = x.const_data_ptr();
  p.bias = data_or_null(bias);
  p.dx = dx.mutable_data_ptr();
  p.partials = bias ? static_cast<float*>(partials.mutable_data_ptr()) : nullptr;
  p.grad_out_stride = grad_out.stride(0);
  p.x_stride = x.stride(0);
  p.rows = rows;
  p.columns = columns;
  for_sum_blocks(rows, columns, 0, [&](float*, int64_t block) { kernel(p, block); });
  return {std::move(dx), add_column_sums(p.partials, blocks, columns, columns, dtype)};
}

Tensor bias_activation(const Tensor& x, const Optional& bias, const std::string& activation) {
  Tensor out = run_activation("bias_activation", x, bias, activation, false);
  bias_activation_variant.record();
  return out;
}

}  // namespace

Tensor bias_glu(const Tensor& x, const Optional& bias, const std::string& activation) {
  Tensor out = run_activation("bias_glu", x, bias, activation, true);
  bias_glu_variant.record();
  return out;
}

namespace {

std::tuple<Tensor, Tensor> bias_activation_backward(const Tensor& grad_out, const Tensor& x,
                                                    const Optional& bias,
                                                    const std::string& activation) {
  auto gradients =
      run_activation_backward("bias_activation_backward", grad_out, x, bias, activation, false);
  bias_activation_backward_variant.record();
  return gradients;
}

std::tuple<Tensor, Tensor> bias_glu_backward(const Tensor& grad_out, const Tensor& x,
                                             const Optional& bias, const std::string& activation) {
  auto gradients =
      run_activation_backward("bias_glu_backward", grad_out, x, bias, activation, true);
  bias_glu_backward_variant.record();
  return gradients;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("bias_activation", TORCH_BOX(&taut::bias_activation));
  m.impl("bias_activation_backward", TORCH_BOX(&taut::bias_activation_backward));
  m.impl("bias_glu", TORCH_BOX(&taut::bias_glu));
  m.impl("bias_glu_backward", TORCH_BOX(&taut::bias_glu_backward));
}
