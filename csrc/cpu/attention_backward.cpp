// Launchers of varlen attention on the CPU, backward.
#include <cstring>
#include <numeric>

#include "cpu/attention_arguments.h"
#include "cpu/column_sums.h"

namespace taut {
namespace {

VariantRecord varlen_attention_backward_variant("varlen_attention_backward");
VariantRecord qkvpacked_backward_variant("varlen_attention_qkvpacked_backward");

AttentionBackwardKernel* kernel_of(ScalarType dtype, const char* op, const char* name) {
  return float_kernel(dtype, op, name, TAUT_KERNEL(attention_backward_f32),
                      TAUT_KERNEL(attention_backward_bf16), TAUT_KERNEL(attention_backward_f16));
}

void set_saved(AttentionBackwardParams& p, const Tensor& grad_out, const Tensor& out,
               const Tensor& logsumexp, ScalarType dtype, const char* op) {
  const AttentionParams& f = p.forward;
  const auto shape_matches = [&](const Tensor& t) {
    return t.size(0) == f.total_q && t.size(1) == f.heads;
  };
  p.grad_out = attention_input(grad_out, f.head_dim, dtype, op, "grad_out");
  p.out = attention_input(out, f.head_dim, dtype, op, "out");
  check(shape_matches(grad_out), op, "grad_out must have the shape of out, got ",
        shape_of(grad_out));
  check(shape_matches(out), op, "out must be (", f.total_q, ", ", f.heads, ", ", f.head_dim,
        "), got ", shape_of(out));
  check(logsumexp.dim() == 2 && logsumexp.size(0) == f.heads && logsumexp.size(1) == f.total_q, op,
        "logsumexp must be (", f.heads, ", ", f.total_q, "), got ", shape_of(logsumexp));
  check_contiguous_float(logsumexp, op, "logsumexp");
  p.logsumexp = logsumexp.const_data_ptr<float>();
}

// dslopes and drelative_bias from the diagonal sums of the scores' gradients, sequence by sequence.
void sum_diagonals(const AttentionBackwardParams& p, int64_t batch, float* dslopes,
                   float* drelative_bias) {
  const AttentionParams& f = p.forward;
  const int64_t limit = f.relative_limit;
  torch::stable::parallel_for(0, f.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      std::vector<double> by_offset(drelative_bias ? 2 * limit + 1 : 0);
      double slope = 0;
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t queries = f.cu_seqlens_q[b + 1] - f.cu_seqlens_q[b];
        const int64_t keys = f.cu_seqlens_k[b + 1] - f.cu_seqlens_k[b];
        const float* sums =
            p.diagonals + h * p.diagonals_stride + f.cu_seqlens_q[b] + f.cu_seqlens_k[b];
        if (f.slopes_stride) slope = 0;
        for (int64_t x = 0; x < queries + keys - 1; ++x) {
          const int64_t distance = x - (queries - 1);
          slope -= static_cast<double>(sums[x]) * static_cast<double>(std::abs(distance));
          if (drelative_bias)
            by_offset[static_cast<size_t>(std::clamp(-distance, -limit, limit) + limit)] += sums[x];
        }
        if (dslopes) dslopes[b * f.slopes_stride + h] = static_cast<float>(slope);
      }
      std::copy(by_offset.begin(), by_offset.end(),
                drelative_bias ? drelative_bias + h * (2 * limit + 1) : nullptr);
    }
  });
}

Tensor gradient_of_option(const std::optional<Tensor>& option) {
  if (!option) return empty_cpu({0}, ScalarType::Float);
  Tensor gradient = option->dim() == 1
                        ? empty_cpu({option->size(0)}, ScalarType::Float)
                        : empty_cpu({option->size(0), option->size(1)}, ScalarType::Float);
  fill_zero(gradient);
  return gradient;
}

// Zeros in the tokens [used, total) of a gradient with the layout of a contiguous tensor.
void clear_tokens(Tensor& t, int64_t used) {
  const int64_t bytes = t.stride(0) * (t.scalar_type() == ScalarType::Float ? 4 : 2);
  std::memset(static_cast<char*>(t.mutable_data_ptr()) + used * bytes, 0,
              static_cast<size_t>((t.size(0) - used) * bytes));
}

std::tuple<Tensor, Tensor> run_backward(AttentionBackwardParams& p, int64_t batch, int64_t total_k,
                                        const std::optional<Tensor>& alibi_slopes,
                                        const std::optional<Tensor>& relative_bias,
                                        AttentionBackwardKernel* kernel) {
  const AttentionParams& f = p.forward;
  Tensor dslopes = gradient_of_option(alibi_slopes);
  Tensor drelative_bias = gradient_of_option(relative_bias);
  std::vector<float> diagonals;
  if (alibi_slopes || relative_bias) {
    p.diagonals_stride = f.total_q + total_k;
    diagonals.resize(static_cast<size_t>(f.heads * p.diagonals_stride));
    p.diagonals = diagonals.data();
  }

  int64_t work = 0, longest = 0;
  std::vector<int64_t> works(static_cast<size_t>(batch)), order(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t queries = f.cu_seqlens_q[b + 1] - f.cu_seqlens_q[b];
    works[static_cast<size_t>(b)] = queries * (f.cu_seqlens_k[b + 1] - f.cu_seqlens_k[b]);
    work += works[static_cast<size_t>(b)];
    longest = std::max(longest, queries);
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return works[static_cast<size_t>(a)] > works[static_cast<size_t>(b)];
  });
  const int64_t group = f.heads_kv > 0 ? f.heads / f.heads_kv : 0;
  const int64_t scratch = (attention_backward_scratch_bytes(f.head_dim, group, longest) + 3) / 4;
  const auto run = [&](int64_t task) {
    kernel(p, order[static_cast<size_t>(task / f.heads_kv)], task % f.heads_kv,
           thread_scratch(scratch));
  };
  const int64_t tasks = batch * f.heads_kv;
  if (work * f.heads * f.head_dim <= kSerialAttentionWork) {
    for (int64_t task = 0; task < tasks; ++task) run(task);
  } else {
    parallel_tasks(tasks, run);
  }
  if (p.diagonals)
    sum_diagonals(p, batch,
                  alibi_slopes ? static_cast<float*>(dslopes.mutable_data_ptr()) : nullptr,
                  relative_bias ? static_cast<float*>(drelative_bias.mutable_data_ptr()) : nullptr);
  return {dslopes, drelative_bias};
}

AttentionGradient gradient(Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(1)}; }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> varlen_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& logsumexp, const Tensor& cu_seqlens_q, const std::optional<Tensor>& cu_seqlens_k,
    std::optional<double> softmax_scale, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& relative_bias, bool causal, int64_t window_left,
    int64_t window_right, double softcap, const std::optional<std::vector<double>>& clip,
    double dropout_p, int64_t dropout_seed, const std::optional<Tensor>&) {
  const char* op = "varlen_attention_backward";
  const ScalarType dtype = q.scalar_type();
  AttentionBackwardKernel* kernel = kernel_of(dtype, op, "q");
  AttentionBackwardParams p{};
  AttentionParams& f = p.forward;
  set_attention_inputs(f, q, k, v, cu_seqlens_q, cu_seqlens_k, op);
  const int64_t batch = cu_seqlens_q.size(0) - 1;
  set_attention_options(f,
                        {softmax_scale, alibi_slopes, relative_bias, causal, window_left,
                         window_right, softcap, clip, dropout_p, dropout_seed},
                        batch, op);
  set_saved(p, grad_out, out, logsumexp, dtype, op);

  Tensor dq = empty_cpu({f.total_q, f.heads, f.head_dim}, dtype);
  Tensor dk = empty_cpu({k.size(0), f.heads_kv, f.head_dim}, dtype);
  Tensor dv = empty_cpu({k.size(0), f.heads_kv, f.head_dim}, dtype);
  p.dq = gradient(dq);
  p.dk = gradient(dk);
  p.dv = gradient(dv);
  auto [dslopes, drelative_bias] =
      run_backward(p, batch, k.size(0), alibi_slopes, relative_bias, kernel);
  clear_tokens(dq, f.cu_seqlens_q[batch]);
  clear_tokens(dk, f.cu_seqlens_k[batch]);
  clear_tokens(dv, f.cu_seqlens_k[batch]);
  varlen_attention_backward_variant.record();
  return {dq, dk, dv, dslopes, drelative_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> varlen_attention_qkvpacked_backward(
    const Tensor& grad_out, const Tensor& qkv, const std::optional<Tensor>& bias, const Tensor& out,
    const Tensor& logsumexp, const Tensor& cu_seqlens, std::optional<double> softmax_scale,
    const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& relative_bias,
    bool causal, int64_t window_left, int64_t window_right, double softcap,
    const std::optional<std::vector<double>>& clip, double dropout_p, int64_t dropout_seed,
    const std::optional<Tensor>&) {
  const char* op = "varlen_attention_qkvpacked_backward";
  const ScalarType dtype = qkv.scalar_type();
  AttentionBackwardKernel* kernel = kernel_of(dtype, op, "qkv");
  AttentionBackwardParams p{};
  AttentionParams& f = p.forward;
  set_packed_attention_inputs(f, qkv, bias, cu_seqlens, op);
  const int64_t batch = cu_seqlens.size(0) - 1;
  set_attention_options(f,
                        {softmax_scale, alibi_slopes, relative_bias, causal, window_left,
                         window_right, softcap, clip, dropout_p, dropout_seed},
                        batch, op);
  set_saved(p, grad_out, out, logsumexp, dtype, op);

  Tensor dqkv = empty_cpu({f.total_q, 3, f.heads, f.head_dim}, dtype);
  const int64_t columns = f.heads * f.head_dim, bytes = dtype == ScalarType::Float ? 4 : 2;
  AttentionGradient* gradients[3] = {&p.dq, &p.dk, &p.dv};
  for (int64_t i = 0; i < 3; ++i)
    *gradients[i] = {static_cast<char*>(dqkv.mutable_data_ptr()) + i * columns * bytes, 3 * columns,
                     f.head_dim};
  auto [dslopes, drelative_bias] =
      run_backward(p, batch, f.total_q, alibi_slopes, relative_bias, kernel);
  clear_tokens(dqkv, f.cu_seqlens_q[batch]);

  Tensor dbias = bias ? empty_cpu({3, f.heads, f.head_dim}, dtype) : empty_cpu({0}, dtype);
  if (bias) {
    ColumnSum* column_sum =
        float_kernel(dtype, op, "qkv", TAUT_KERNEL(column_sum_f32), TAUT_KERNEL(column_sum_of_bf16),
                     TAUT_KERNEL(column_sum_of_f16));
    const ColumnSumParams sum{dqkv.const_data_ptr(), f.cu_seqlens_q[batch], 3 * columns,
                              dbias.mutable_data_ptr()};
    parallel_rows(3 * columns, f.total_q,
                  [&](int64_t begin, int64_t end) { column_sum(sum, begin, end); });
  }
  qkvpacked_backward_variant.record();
  return {dqkv, dbias, dslopes, drelative_bias};
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("varlen_attention_backward", TORCH_BOX(&taut::varlen_attention_backward));
  m.impl("varlen_attention_qkvpacked_backward",
         TORCH_BOX(&taut::varlen_attention_qkvpacked_backward));
}
