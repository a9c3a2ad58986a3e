// Launchers of the norm ops on the CPU.
#include "cpu/norm.h"

#include "cpu/column_sums_launcher.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

VariantRecord layer_norm_variant("layer_norm");
VariantRecord layer_norm_backward_variant("layer_norm_backward");
VariantRecord rms_norm_variant("rms_norm");
VariantRecord rms_norm_backward_variant("rms_norm_backward");

void check_norm(const char* op, const Tensor& x, const Optional& residual, const Optional& bias,
                const Optional& weight, const Optional& norm_bias) {
  if (x.dim() != 2) check(false, op, "x must be (total_tokens, columns), got ", shape_of(x));
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  check(columns > 0, op, "x must have at least one column, got (", rows, ", 0)");
  check(has_contiguous_rows(x), op, "x must have contiguous rows");
  if (residual) check_rows(*residual, rows, columns, dtype, op, "residual");
  if (bias) check_vector(*bias, columns, dtype, op, "bias");
  if (weight) check_vector(*weight, columns, dtype, op, "weight");
  if (norm_bias) check_vector(*norm_bias, columns, dtype, op, "norm_bias");
}

// Fills what both norms share and runs the kernel; `mean` is null for RMSNorm.
void run_norm(const char* op, const Tensor& x, const Optional& residual, const Optional& bias,
              const Optional& weight, const Optional& norm_bias, double eps, const Tensor& out,
              void* sum, float* mean, float* rstd) {
  NormParams p{};
  p.x = x.const_data_ptr();
  p.residual = data_or_null(residual);
  p.bias = data_or_null(bias);
  p.weight = data_or_null(weight);
  p.norm_bias = data_or_null(norm_bias);
  p.out = out.mutable_data_ptr();
  p.sum = sum;
  p.mean = mean;
  p.rstd = rstd;
  p.x_stride = x.stride(0);
  p.residual_stride = row_stride_or_0(residual);
  p.columns = x.size(1);
  p.eps = static_cast<float>(eps);
  p.rms = mean == nullptr;
  NormRows* kernel = float_kernel(x.scalar_type(), op, "x", TAUT_KERNEL(norm_rows_f32),
                                  TAUT_KERNEL(norm_rows_bf16), TAUT_KERNEL(norm_rows_f16));
  parallel_rows(x.size(0), p.columns, [&](int64_t begin, int64_t end) {
    kernel(p, thread_scratch(p.columns), begin, end);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const Optional& residual,
                                                      const Optional& bias, const Optional& weight,
                                                      const Optional& norm_bias, double eps,
                                                      bool return_sum) {
  const char* op = "layer_norm";
  check_norm(op, x, residual, bias, weight, norm_bias);
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  Tensor out = empty_cpu({rows, columns}, dtype);
  Tensor sum = return_sum ? empty_cpu({rows, columns}, dtype) : empty_cpu({0}, dtype);
  Tensor mean = empty_cpu({rows}, ScalarType::Float);
  Tensor rstd = empty_cpu({rows}, ScalarType::Float);
  run_norm(op, x, residual, bias, weight, norm_bias, eps, out,
           return_sum ? sum.mutable_data_ptr() : nullptr, floats_of(mean), floats_of(rstd));
  layer_norm_variant.record();
  return {std::move(out), std::move(sum), std::move(mean), std::move(rstd)};
}

std::tuple<Tensor, Tensor, Tensor> rms_norm(const Tensor& x, const Optional& residual,
                                            const Optional& bias, const Optional& weight,
                                            double eps, bool return_sum) {
  const char* op = "rms_norm";
  check_norm(op, x, residual, bias, weight, std::nullopt);
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  Tensor out = empty_cpu({rows, columns}, dtype);
  Tensor sum = return_sum ? empty_cpu({rows, columns}, dtype) : empty_cpu({0}, dtype);
  Tensor rstd = empty_cpu({rows}, ScalarType::Float);
  run_norm(op, x, residual, bias, weight, std::nullopt, eps, out,
           return_sum ? sum.mutable_data_ptr() : nullptr, nullptr, floats_of(rstd));
  rms_norm_variant.record();
  return {std::move(out), std::move(sum), std::move(rstd)};
}

struct NormGradients {
  Tensor dx, dbias, dweight, dnorm_bias;
};

// dnorm_bias holds zeros for RMSNorm (no mean); so do dbias and dweight where none was given.
NormGradients run_norm_backward(const char* op, const Tensor& grad_out, const Optional& grad_sum,
                                const Tensor& x, const Optional& residual, const Optional& bias,
                                const Optional& weight, const Optional& mean, const Tensor& rstd) {
  check_norm(op, x, residual, bias, weight, std::nullopt);
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  check_rows(grad_out, rows, columns, dtype, op, "grad_out");
  if (grad_sum) check_rows(*grad_sum, rows, columns, dtype, op, "grad_sum");
  if (mean) check_vector(*mean, rows, ScalarType::Float, op, "mean");
  check_vector(rstd, rows, ScalarType::Float, op, "rstd");

  const int64_t blocks = sum_blocks(rows);
  Tensor dx = empty_cpu({rows, columns}, dtype);
  Tensor partials = empty_cpu({blocks, 3 * columns}, ScalarType::Float);
  NormBackwardParams p{};
  p.grad_out = grad_out.const_data_ptr();
  p.grad_sum = data_or_null(grad_sum);
  p.x = x.const_data_ptr();
  p.residual = data_or_null(residual);
  p.bias = data_or_null(bias);
  p.weight = data_or_null(weight);
  p.mean = data_or_null<float>(mean);
  p.rstd = static_cast<const float*>(rstd.const_data_ptr());
  p.dx = dx.mutable_data_ptr();
  p.partials = floats_of(partials);
  p.grad_out_stride = grad_out.stride(0);
  p.grad_sum_stride = row_stride_or_0(grad_sum);
  p.x_stride = x.stride(0);
  p.residual_stride = row_stride_or_0(residual);
  p.rows = rows;
  p.columns = columns;
  NormBackwardBlock* kernel =
      float_kernel(dtype, op, "x", TAUT_KERNEL(norm_backward_block_f32),
                   TAUT_KERNEL(norm_backward_block_bf16), TAUT_KERNEL(norm_backward_block_f16));
  for_sum_blocks(rows, columns, columns,
                 [&](float* scratch, int64_t block) { kernel(p, scratch, block); });
  const auto sums = [&](int64_t kind) {
    return add_column_sums(p.partials + kind * columns, blocks, 3 * columns, columns, dtype);
  };
  return {std::move(dx), sums(0), sums(1), sums(2)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm_backward(
    const Tensor& grad_out, const Optional& grad_sum, const Tensor& x, const Optional& residual,
    const Optional& bias, const Optional& weight, const Tensor& mean, const Tensor& rstd) {
  NormGradients g = run_norm_backward("layer_norm_backward", grad_out, grad_sum, x, residual, bias,
                                      weight, mean, rstd);
  layer_norm_backward_variant.record();
  return {std::move(g.dx), std::move(g.dbias), std::move(g.dweight), std::move(g.dnorm_bias)};
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_backward(const Tensor& grad_out,
                                                     const Optional& grad_sum, const Tensor& x,
                                                     const Optional& residual, const Optional& bias,
                                                     const Optional& weight, const Tensor& rstd) {
  NormGradients g = run_norm_backward("rms_norm_backward", grad_out, grad_sum, x, residual, bias,
                                      weight, std::nullopt, rstd);
  rms_norm_backward_variant.record();
  return {std::move(g.dx), std::move(g.dbias), std::move(g.dweight)};
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&taut::layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&taut::layer_norm_backward));
  m.impl("rms_norm", TORCH_BOX(&taut::rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&taut::rms_norm_backward));
}
