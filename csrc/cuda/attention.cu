// Launchers of varlen attention on CUDA, forward. fp32 and devices before sm_80 go on to Triton.
#include "cuda/attention.h"
#include "cuda/attention_arguments.h"
#include "cuda/fallback.h"

namespace taut {
namespace {

std::tuple<Tensor, Tensor> forward(AttentionParams& p, ScalarType dtype, int32_t device,
                                   cudaStream_t stream, const char* op) {
  Tensor out = empty_cuda({p.total_q, p.heads, p.head_dim}, dtype, device);
  Tensor logsumexp = empty_cuda({p.heads, p.total_q}, ScalarType::Float, device);
  p.out = out.mutable_data_ptr();
  p.logsumexp = static_cast<float*>(logsumexp.mutable_data_ptr());
  const auto run = dtype == ScalarType::BFloat16 ? run_attention<bf16> : run_attention<f16>;
  record_variant(op, out.numel() > 0 ? run(p, device, stream) : "native");
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor> varlen_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
    const std::optional<Tensor>& cu_seqlens_k, std::optional<double> softmax_scale,
    const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& relative_bias,
    bool causal, int64_t window_left, int64_t window_right, double softcap,
    const std::optional<std::vector<double>>& clip, double dropout_p, int64_t dropout_seed,
    const std::optional<Tensor>& plan) {
  const char* op = "varlen_attention";
  check(q.dim() == 3, op, "q must be (total_q, heads, head_dim), got ", shape_of(q));
  check(k.dim() == 3, op, "k must be (total_k, heads_kv, head_dim), got ", shape_of(k));
  const int32_t device = q.get_device_index();
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  AttentionParams p{};
  AttentionInputs inputs(op, device, q.size(2), q.scalar_type());
  set_qkv(p, inputs, q, k, v, op);
  const AttentionBatch batch{cu_seqlens_q, cu_seqlens_k ? *cu_seqlens_k : cu_seqlens_q, q.size(0),
                             k.size(0)};
  check_batch(batch, device, op);
  const Tensor order = plan_of(plan, batch, device, stream, op);
  set_batch(p, batch, order);
  set_options(p,
              {softmax_scale, alibi_slopes, relative_bias, causal, window_left, window_right,
               softcap, clip, dropout_p, dropout_seed},
              device, op);
  return forward(p, q.scalar_type(), device, stream, op);
}

std::tuple<Tensor, Tensor> varlen_attention_qkvpacked(
    const Tensor& qkv, const std::optional<Tensor>& bias, const Tensor& cu_seqlens,
    std::optional<double> softmax_scale, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& relative_bias, bool causal, int64_t window_left,
    int64_t window_right, double softcap, const std::optional<std::vector<double>>& clip,
    double dropout_p, int64_t dropout_seed, const std::optional<Tensor>& plan) {
  const char* op = "varlen_attention_qkvpacked";
  check_packed(qkv, op);
  const int32_t device = qkv.get_device_index();
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  AttentionParams p{};
  AttentionInputs inputs(op, device, qkv.size(3), qkv.scalar_type());
  set_packed(p, inputs, qkv, bias, device, op);
  const AttentionBatch batch{cu_seqlens, cu_seqlens, qkv.size(0), qkv.size(0)};
  check_batch(batch, device, op);
  const Tensor order = plan_of(plan, batch, device, stream, op);
  set_batch(p, batch, order);
  set_options(p,
              {softmax_scale, alibi_slopes, relative_bias, causal, window_left, window_right,
               softcap, clip, dropout_p, dropout_seed},
              device, op);
  return forward(p, qkv.scalar_type(), device, stream, op);
}

void boxed(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&varlen_attention)>("varlen_attention", stack, inputs, outputs);
}
void boxed_qkvpacked(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  native_or_triton<TORCH_BOX(&varlen_attention_qkvpacked)>("varlen_attention_qkvpacked", stack,
                                                           inputs, outputs);
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CUDA, m) {
  m.impl("varlen_attention", &taut::boxed);
  m.impl("varlen_attention_qkvpacked", &taut::boxed_qkvpacked);
}
