// Launchers of varlen attention on CUDA, backward. fp32 and devices before sm_80 go on to Triton.
#include "cuda/attention_arguments.h"
#include "cuda/attention_backward_sums.cuh"
#include "cuda/fallback.h"

namespace taut {
namespace {

void sum_shares(const SharesParams& p, int32_t sequences, cudaStream_t stream) {
  const unsigned columns = (p.columns + kSharesColumns - 1) / kSharesColumns;
  if (columns == 0 || sequences == 0) return;
  sum_shares_kernel<<<dim3(sequences, columns), kSharesThreads, kSharesSharedBytes, stream>>>(p);
  check_cuda_call(cudaGetLastError(), "sum_shares");
}

// dq, dk and dv are written where `b` says; returns dslopes and drelative_bias.
std::tuple<Tensor, Tensor> backward(AttentionBackwardParams& b, const AttentionBatch& batch,
                                    const Tensor& plan, const Tensor& logsumexp,
                                    const std::optional<Tensor>& alibi_slopes,
                                    const std::optional<Tensor>& relative_bias, ScalarType dtype,
                                    int32_t device, cudaStream_t stream, const char* op) {
  AttentionParams& p = b.forward;
  check_cuda(logsumexp, device, op, "logsumexp");
  check(logsumexp.dim() == 2 && logsumexp.size(0) == p.heads && logsumexp.size(1) == p.total_q &&
            logsumexp.scalar_type() == ScalarType::Float && logsumexp.is_contiguous(),
        op, "logsumexp must be contiguous float32 (", p.heads, ", ", p.total_q, "), got ",
        shape_of(logsumexp));
  p.logsumexp = const_cast<float*>(logsumexp.const_data_ptr<float>());
  const bool is_self = batch.cu_seqlens_q.const_data_ptr() == batch.cu_seqlens_k.const_data_ptr() &&
                       batch.total_q == batch.total_k;
  const Tensor key_plan =
      is_self ? plan
              : plan_of(std::nullopt,
                        {batch.cu_seqlens_k, batch.cu_seqlens_q, batch.total_k, batch.total_q},
                        device, stream, op);
  b.key_plan = key_plan.const_data_ptr<int32_t>();
  b.key_plan_items = plan_items_of(p.batch, p.total_k);
  const Tensor of_rows = empty_cuda({2, p.heads, p.total_q}, ScalarType::Float, device);
  b.lse2 = static_cast<float*>(of_rows.mutable_data_ptr());
  b.delta = b.lse2 + int64_t{p.heads} * p.total_q;

  const auto shares_of = [&](bool wanted, int64_t width) {
    Tensor shares =
        empty_cuda({wanted ? p.plan_items : 0, p.heads, width}, ScalarType::Float, device);
    fill_zero(shares, stream);
    return shares;
  };
  const int64_t width = 2 * int64_t{p.relative_limit} + 1;
  const Tensor slope_shares = shares_of(alibi_slopes.has_value(), 1);
  const Tensor relative_shares = shares_of(relative_bias.has_value(), width);
  if (alibi_slopes) b.slope_shares = static_cast<float*>(slope_shares.mutable_data_ptr());
  if (relative_bias) b.relative_shares = static_cast<float*>(relative_shares.mutable_data_ptr());

  const char* variant = "native";
  if (p.heads > 0 && (p.total_q > 0 || p.total_k > 0)) {
    const auto run =
        dtype == ScalarType::BFloat16 ? run_attention_backward<bf16> : run_attention_backward<f16>;
    variant = run(b, device, stream);
  }

  const auto summed = [&](const std::optional<Tensor>& like, const float* shares,
                          bool per_sequence) {
    if (!like) return empty_cuda({0}, ScalarType::Float, device);
    Tensor out = like->dim() == 1
                     ? empty_cuda({like->size(0)}, ScalarType::Float, device)
                     : empty_cuda({like->size(0), like->size(1)}, ScalarType::Float, device);
    SharesParams s{};
    s.x = shares;
    s.out = static_cast<float*>(out.mutable_data_ptr());
    s.cu_seqlens = per_sequence ? p.cu_seqlens_q : nullptr;
    s.rows = p.plan_items;
    s.columns = static_cast<int32_t>(per_sequence ? p.heads : out.numel());
    s.total = p.total_q;
    sum_shares(s, per_sequence ? p.batch : 1, stream);
    return out;
  };
  Tensor dslopes = summed(alibi_slopes, b.slope_shares, p.slopes_stride != 0);
  Tensor drelative = summed(relative_bias, b.relative_shares, false);
  record_variant(op, variant);
  return {dslopes, drelative};
}

AttentionGradient gradient_rows(const Tensor& t) {
  return {t.mutable_data_ptr(), static_cast<int32_t>(t.stride(0)),
          static_cast<int32_t>(t.stride(1))};
}

void set_saved(AttentionBackwardParams& b, AttentionInputs& inputs, const Tensor& grad_out,
               const Tensor& out, const char* op) {
  const AttentionParams& p = b.forward;
  b.grad_out = inputs.rows(grad_out, "grad_out");
  b.out = inputs.rows(out, "out");
  for (const Tensor* t : {&grad_out, &out})
    check(t->size(0) == p.total_q && t->size(1) == p.heads, op,
          "grad_out and out must have the shape of q, got ", shape_of(*t));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> varlen_attention_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& logsumexp, const Tensor& cu_seqlens_q, const std::optional<Tensor>& cu_seqlens_k,
    std::optional<double> softmax_scale, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& relative_bias, bool causal, int64_t window_left,
    int64_t window_right, double softcap, const std::optional<std::vector<double>>& clip,
    double dropout_p, int64_t dropout_seed, const std::optional<Tensor>& plan) {
  const char* op = "varlen_attention_backward";
  check(q.dim() == 3, op, "q must be (total_q, heads, head_dim), got ", shape_of(q));
  check(k.dim() == 3, op, "k must be (total_k, heads_kv, head_dim), got ", shape_of(k));
  const int32_t device = q.get_device_index();
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  AttentionBackwardParams b{};
  AttentionInputs inputs(op, device, q.size(2), q.scalar_type());
  set_qkv(b.forward, inputs, q, k, v, op);
  const AttentionBatch batch{cu_seqlens_q, cu_seqlens_k ? *cu_seqlens_k : cu_seqlens_q, q.size(0),
                             k.size(0)};
  check_batch(batch, device, op);
  const Tensor order = plan_of(plan, batch, device, stream, op);
  set_batch(b.forward, batch, order);
  set_options(b.forward,
              {softmax_scale, alibi_slopes, relative_bias, causal, window_left, window_right,
               softcap, clip, dropout_p, dropout_seed},
              device, op);
  set_saved(b, inputs, grad_out, out, op);
  Tensor dq = empty_cuda({q.size(0), q.size(1), q.size(2)}, q.scalar_type(), device);
  Tensor dk = empty_cuda({k.size(0), k.size(1), k.size(2)}, q.scalar_type(), device);
  Tensor dv = empty_cuda({k.size(0), k.size(1), k.size(2)}, q.scalar_type(), device);
  b.dq = gradient_rows(dq);
  b.dk = gradient_rows(dk);
  b.dv = gradient_rows(dv);
  auto [dslopes, drelative] = backward(b, batch, order, logsumexp, alibi_slopes, relative_bias,
                                       q.scalar_type(), device, stream, op);
  return {dq, dk, dv, dslopes, drelative};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> varlen_attention_qkvpacked_backward(
    const Tensor& grad_out, const Tensor& qkv, const std::optional<Tensor>& bias, const Tensor& out,
    const Tensor& logsumexp, const Tensor& cu_seqlens, std::optional<double> softmax_scale,
    const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& relative_bias,
    bool causal, int64_t window_left, int64_t window_right, double softcap,
    const std::optional<std::vector<double>>& clip, double dropout_p, int64_t dropout_seed,
    const std::optional<Tensor>& plan) {
  const char* op = "varlen_attention_qkvpacked_backward";
  check_packed(qkv, op);
  const int32_t device = qkv.get_device_index();
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  AttentionBackwardParams b{};
  AttentionInputs inputs(op, device, qkv.size(3), qkv.scalar_type());
  set_packed(b.forward, inputs, qkv, bias, device, op);
  const AttentionBatch batch{cu_seqlens, cu_seqlens, qkv.size(0), qkv.size(0)};
  check_batch(batch, device, op);
  const Tensor order = plan_of(plan, batch, device, stream, op);
  set_batch(b.forward, batch, order);
  set_options(b.forward,
              {softmax_scale, alibi_slopes, relative_bias, causal, window_left, window_right,
               softcap, clip, dropout_p, dropout_seed},
              device, op);
  set_saved(b, inputs, grad_out, out, op);
  Tensor dqkv = empty_cuda({qkv.size(0), 3, qkv.size(2), qkv.size(3)}, qkv.scalar_type(), device);
  AttentionGradient* parts[3] = {&b.dq, &b.dk, &b.dv};
  for (int64_t i = 0; i < 3; ++i)
    *parts[i] = {static_cast<char*>(dqkv.mutable_data_ptr()) + 2 * i * dqkv.stride(1),
                 static_cast<int32_t>(dqkv.stride(0)), static_cast<int32_t>(dqkv.stride(2))};
  auto [dslopes, drelative] = backward(b, batch, order, logsumexp, alibi_slopes, relative_bias,
                                       qkv.scalar_type(), device, stream, op);
  Tensor dbias = empty_cuda({0}, qkv.scalar_type(), device);
  if (bias) {
    const int64_t tokens = 0;
    dbias = torch::stable::to(
        torch::stable::sum(dqkv, torch::headeronly::IntHeaderOnlyArrayRef(&tokens, 1), false,
                           ScalarType::Float),
        qkv.scalar_type());
  }
  return {dqkv, dbias, dslopes, drelative};
}

void boxed(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&varlen_attention_backward)>("varlen_attention_backward", stack,
                                                          inputs, outputs);
}
void boxed_qkvpacked(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&varlen_attention_qkvpacked_backward)>(
      "varlen_attention_qkvpacked_backward", stack, inputs, outputs);
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CUDA, m) {
  m.impl("varlen_attention_backward", &taut::boxed);
  m.impl("varlen_attention_qkvpacked_backward", &taut::boxed_qkvpacked);
}
