// The planner's kernel and its launcher.
#include "cuda/attention_arguments.h"
#include "cuda/attention_plan.cuh"
#include "cuda/variants.h"

namespace taut {
namespace {

Tensor make_plan(const AttentionBatch& batch, int32_t device, cudaStream_t stream) {
  AttentionPlanParams p{};
  p.cu_seqlens_q = batch.cu_seqlens_q.const_data_ptr<int32_t>();
  p.cu_seqlens_k = batch.cu_seqlens_k.const_data_ptr<int32_t>();
  p.batch = static_cast<int32_t>(batch.cu_seqlens_q.size(0) - 1);
  p.total_q = static_cast<int32_t>(batch.total_q);
  p.total_k = static_cast<int32_t>(batch.total_k);
  p.items = plan_items_of(p.batch, p.total_q);
  Tensor plan = empty_cuda({kPlanHeader + int64_t{p.items} + p.batch, 2}, ScalarType::Int, device);
  p.plan = static_cast<int32_t*>(plan.mutable_data_ptr());
  const unsigned blocks = p.batch > 0 ? (p.batch + kPlanThreads - 1) / kPlanThreads : 1;
  attention_plan_kernel<<<blocks, kPlanThreads, kPlanSharedBytes, stream>>>(p);
  check_cuda_call(cudaGetLastError(), "attention_plan");
  return plan;
}

Tensor attention_plan(const Tensor& cu_seqlens_q, const std::optional<Tensor>& cu_seqlens_k,
                      int64_t total_q, int64_t total_k) {
  const char* op = "attention_plan";
  const int32_t device = cu_seqlens_q.get_device_index();
  const AttentionBatch batch{cu_seqlens_q, cu_seqlens_k ? *cu_seqlens_k : cu_seqlens_q, total_q,
                             total_k};
  check_batch(batch, device, op);
  const DeviceGuard guard(device);
  Tensor plan = make_plan(batch, device, current_stream(device));
  record_variant(op, "native");
  return plan;
}

}  // namespace

Tensor plan_of(const std::optional<Tensor>& given, const AttentionBatch& batch, int32_t device,
               cudaStream_t stream, const char* op) {
  if (!given) return make_plan(batch, device, stream);
  const int64_t sequences = batch.cu_seqlens_q.size(0) - 1;
  const int64_t rows = kPlanHeader + plan_items_of(sequences, batch.total_q) + sequences;
  check_cuda(*given, device, op, "plan");
  check(given->dim() == 2 && given->size(0) == rows && given->size(1) == 2, op, "plan must be (",
        rows, ", 2), got ", shape_of(*given));
  check_dtype(*given, ScalarType::Int, op, "plan");
  check(given->is_contiguous(), op, "plan must be contiguous");
  return *given;
}

}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CUDA, m) {
  m.impl("attention_plan", TORCH_BOX(&taut::attention_plan));
}
