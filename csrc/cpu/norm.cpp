// Launchers of the norm ops on the CPU.
#include "cpu/norm.h"

#include "cpu/tensor.h"

namespace taut {
namespace {

// Rows per task: enough work to be worth a task, few enough to balance.
constexpr int64_t kRowsPerTask = 32;

VariantRecord layer_norm_variant("layer_norm");

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm(Tensor x, std::optional<Tensor> residual,
                                                      std::optional<Tensor> bias,
                                                      std::optional<Tensor> weight,
                                                      std::optional<Tensor> norm_bias, double eps,
                                                      bool return_sum) {
  const char* op = "layer_norm";
  check(x.dim() == 2, op, "x must be (total_tokens, columns), got ", shape_of(x));
  const int64_t rows = x.size(0), columns = x.size(1);
  const ScalarType dtype = x.scalar_type();
  check(columns > 0 && (x.stride(1) == 1 || columns == 1), op,
        "x must have at least one column and contiguous rows, got shape ", shape_of(x));
  if (residual) {
    check_cpu(*residual, op, "residual");
    check(residual->dim() == 2 && residual->size(0) == rows && residual->size(1) == columns, op,
          "residual must have the shape of x ", shape_of(x), ", got ", shape_of(*residual));
    check(residual->scalar_type() == dtype, op, "residual must have the dtype of x");
    check(residual->stride(1) == 1 || columns == 1, op, "residual must have contiguous rows");
  }
  if (bias) check_vector(*bias, columns, dtype, op, "bias");
  if (weight) check_vector(*weight, columns, dtype, op, "weight");
  if (norm_bias) check_vector(*norm_bias, columns, dtype, op, "norm_bias");

  Tensor out = empty_cpu({rows, columns}, dtype);
  Tensor sum = return_sum ? empty_cpu({rows, columns}, dtype) : empty_cpu({0}, dtype);
  Tensor mean = empty_cpu({rows}, ScalarType::Float);
  Tensor rstd = empty_cpu({rows}, ScalarType::Float);

  NormParams p{};
  p.x = x.const_data_ptr();
  p.residual = residual ? residual->const_data_ptr() : nullptr;
  p.bias = bias ? bias->const_data_ptr() : nullptr;
  p.weight = weight ? weight->const_data_ptr() : nullptr;
  p.norm_bias = norm_bias ? norm_bias->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.sum = return_sum ? sum.mutable_data_ptr() : nullptr;
  p.mean = static_cast<float*>(mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  p.x_stride = x.stride(0);
  p.residual_stride = residual ? residual->stride(0) : 0;
  p.columns = columns;
  p.eps = static_cast<float>(eps);

  NormRows* kernel = nullptr;
  switch (dtype) {
    case ScalarType::Float: kernel = TAUT_KERNEL(norm_rows_f32); break;
    case ScalarType::BFloat16: kernel = TAUT_KERNEL(norm_rows_bf16); break;
    case ScalarType::Half: kernel = TAUT_KERNEL(norm_rows_f16); break;
    default: check(false, op, "x must be float32, bfloat16 or float16");
  }
  torch::stable::parallel_for(0, rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernel(p, begin, end);
  });
  layer_norm_variant.record();
  return {out, sum, mean, rstd};
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) { m.impl("layer_norm", TORCH_BOX(&taut::layer_norm)); }
