// Launchers of the pooling ops on the CPU.
#include "cpu/pooling.h"

#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

VariantRecord pool_variant("pool");
VariantRecord pool_backward_variant("pool_backward");

PoolMode parse_mode(const std::string& name, const char* op) {
  constexpr const char* kNames[] = {"cls", "mean", "max", "last"};
  for (int i = 0; i < 4; ++i)
    if (name == kNames[i]) return static_cast<PoolMode>(i);
  check(false, op, "mode must be one of cls, mean, max, last, got ", name);
  return PoolMode::cls;
}

PoolParams check_pool(const char* op, const Tensor& x, const Tensor& cu_seqlens,
                      const std::string& mode, bool normalize) {
  if (x.dim() != 2) check(false, op, "x must be (total_tokens, columns), got ", shape_of(x));
  check(has_contiguous_rows(x), op, "x must have contiguous rows");
  check_cu_seqlens(cu_seqlens, x.size(0), op, "cu_seqlens");
  PoolParams p{};
  p.x = x.const_data_ptr();
  p.cu_seqlens = static_cast<const int32_t*>(cu_seqlens.const_data_ptr());
  p.x_stride = x.stride(0);
  p.columns = x.size(1);
  p.mode = parse_mode(mode, op);
  p.normalize = normalize;
  return p;
}

// One task per sequence; in this thread alone where that costs less than starting others.
void run(PoolSequence* kernel, const PoolParams& p, int64_t batch, int64_t floats) {
  const int64_t tokens = batch > 0 ? p.cu_seqlens[batch] : 0;
  const auto task = [&](int64_t s) { kernel(p, thread_scratch(floats), s); };
  if (tokens <= rows_per_task(p.columns)) {
    for (int64_t s = 0; s < batch; ++s) task(s);
  } else {
    parallel_tasks(batch, task);
  }
}

Tensor pool(const Tensor& x, const Tensor& cu_seqlens, const std::string& mode, bool normalize) {
  const char* op = "pool";
  const ScalarType dtype = x.scalar_type();
  PoolParams p = check_pool(op, x, cu_seqlens, mode, normalize);
  PoolSequence* kernel = float_kernel(dtype, op, "x", TAUT_KERNEL(pool_f32), TAUT_KERNEL(pool_bf16),
                                      TAUT_KERNEL(pool_f16));
  const int64_t batch = cu_seqlens.size(0) - 1;
  Tensor out = empty_cpu({batch, p.columns}, dtype);
  p.out = out.mutable_data_ptr();
  run(kernel, p, batch, p.columns);
  pool_variant.record();
  return out;
}

Tensor pool_backward(const Tensor& grad_out, const Tensor& x, const Tensor& cu_seqlens,
                     const std::string& mode, bool normalize) {
  const char* op = "pool_backward";
  const ScalarType dtype = x.scalar_type();
  PoolParams p = check_pool(op, x, cu_seqlens, mode, normalize);
  PoolSequence* kernel =
      float_kernel(dtype, op, "x", TAUT_KERNEL(pool_backward_f32), TAUT_KERNEL(pool_backward_bf16),
                   TAUT_KERNEL(pool_backward_f16));
  const int64_t batch = cu_seqlens.size(0) - 1, tokens = x.size(0);
  check_rows(grad_out, batch, p.columns, dtype, op, "grad_out");
  Tensor dx = empty_cpu({tokens, p.columns}, dtype);
  p.grad_out = grad_out.const_data_ptr();
  p.grad_out_stride = grad_out.stride(0);
  p.out = dx.mutable_data_ptr();
  run(kernel, p, batch, 2 * p.columns);

  // Rows behind the last sequence belong to none.
  const size_t row_bytes = static_cast<size_t>(p.columns) * dx.element_size();
  const int64_t used = p.cu_seqlens[batch];
  if (used < tokens && row_bytes > 0)
    std::memset(static_cast<char*>(p.out) + static_cast<size_t>(used) * row_bytes, 0,
                static_cast<size_t>(tokens - used) * row_bytes);
  pool_backward_variant.record();
  return dx;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("pool", TORCH_BOX(&taut::pool));
  m.impl("pool_backward", TORCH_BOX(&taut::pool_backward));
}
