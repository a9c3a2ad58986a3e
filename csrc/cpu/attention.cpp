// Launchers of varlen attention on the CPU, forward.
#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/attention_arguments.h"
#include "cpu/launchers.h"
#include "cpu/scratch.h"

namespace taut {
namespace {

VariantRecord varlen_attention_variant("varlen_attention");
VariantRecord qkvpacked_variant("varlen_attention_qkvpacked");

AttentionKernel* kernel_of(ScalarType dtype, const char* op, const char* name) {
  return float_kernel(dtype, op, name, TAUT_KERNEL(attention_f32), TAUT_KERNEL(attention_bf16),
                      TAUT_KERNEL(attention_f16));
}

// Runs a task per (rows of a sequence, head), those with most work first.
void run_forward(const AttentionParams& p, int64_t batch, AttentionKernel* kernel) {
  struct Item {
    AttentionTask task;
    int64_t work;
  };
  std::vector<Item> items;
  items.reserve(static_cast<size_t>(batch));
  int64_t work = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t rows = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b];
    const int64_t keys = p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b];
    for (int32_t first = 0; first < rows; first += kAttentionRows) {
      const int32_t part = std::min<int32_t>(rows - first, kAttentionRows);
      items.push_back({{static_cast<int32_t>(b), first, part}, part * keys});
    }
    work += rows * keys;
  }
  const int64_t scratch = (attention_scratch_bytes(p.head_dim) + 3) / 4;
  // Neighbouring heads of a sequence go to one thread where there is enough to share out: a head's
  // rows are fetched while the head before it is worked on.
  const int64_t all = static_cast<int64_t>(items.size()) * p.heads;
  const int64_t heads = std::clamp<int64_t>(all / (16 * torch::stable::get_num_threads()), 1, 4);
  const int64_t groups = (p.heads + heads - 1) / heads;
  const auto run = [&](int64_t task) {
    const int64_t first = task % groups * heads;
    for (int64_t head = first; head < std::min(p.heads, first + heads); ++head)
      kernel(p, items[static_cast<size_t>(task / groups)].task, head, thread_scratch(scratch));
  };
  const int64_t tasks = static_cast<int64_t>(items.size()) * groups;
  if (work * p.heads * p.head_dim <= kSerialAttentionWork) {
    for (int64_t task = 0; task < tasks; ++task) run(task);
    return;
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.work > b.work; });
  parallel_tasks(tasks, run);
}

// Zeros, and -inf for logsumexp, in the rows of q that belong to no sequence.
void clear_rest(const AttentionParams& p, int64_t batch, int64_t element_bytes) {
  const int64_t used = p.cu_seqlens_q[batch], rest = p.total_q - used;
  if (rest == 0) return;
  const int64_t row_bytes = p.heads * p.head_dim * element_bytes;
  std::memset(static_cast<char*>(p.out) + used * row_bytes, 0,
              static_cast<size_t>(rest * row_bytes));
  for (int64_t h = 0; h < p.heads; ++h)
    std::fill_n(p.logsumexp + h * p.total_q + used, rest, -INFINITY);
}

// out: contiguous, of total_q * heads * head_dim elements; logsumexp: of heads * total_q.
void forward(AttentionParams& p, const Tensor& out, float* logsumexp, int64_t batch,
             AttentionKernel* kernel) {
  p.out = out.mutable_data_ptr();
  p.logsumexp = logsumexp;
  run_forward(p, batch, kernel);
  clear_rest(p, batch, out.scalar_type() == ScalarType::Float ? 4 : 2);
}

std::tuple<Tensor, Tensor> forward(AttentionParams& p, ScalarType dtype, int64_t batch,
                                   AttentionKernel* kernel) {
  Tensor out = empty_cpu({p.total_q, p.heads, p.head_dim}, dtype);
  Tensor logsumexp = empty_cpu({p.heads, p.total_q}, ScalarType::Float);
  forward(p, out, floats_of(logsumexp), batch, kernel);
  return {std::move(out), std::move(logsumexp)};
}

std::tuple<Tensor, Tensor> varlen_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
    const std::optional<Tensor>& cu_seqlens_k, std::optional<double> softmax_scale,
    const std::optional<Tensor>& alibi_slopes, const std::optional<Tensor>& relative_bias,
    bool causal, int64_t window_left, int64_t window_right, double softcap,
    const std::optional<std::vector<double>>& clip, double dropout_p, int64_t dropout_seed,
    const std::optional<Tensor>&) {
  const char* op = "varlen_attention";
  AttentionKernel* kernel = kernel_of(q.scalar_type(), op, "q");
  AttentionParams p{};
  set_attention_inputs(p, q, k, v, cu_seqlens_q, cu_seqlens_k, op);
  const int64_t batch = cu_seqlens_q.size(0) - 1;
  set_attention_options(p,
                        {softmax_scale, alibi_slopes, relative_bias, causal, window_left,
                         window_right, softcap, clip, dropout_p, dropout_seed},
                        batch, op);
  auto result = forward(p, q.scalar_type(), batch, kernel);
  varlen_attention_variant.record();
  return result;
}

std::tuple<Tensor, Tensor> varlen_attention_qkvpacked(
    const Tensor& qkv, const std::optional<Tensor>& bias, const Tensor& cu_seqlens,
    std::optional<double> softmax_scale, const std::optional<Tensor>& alibi_slopes,
    const std::optional<Tensor>& relative_bias, bool causal, int64_t window_left,
    int64_t window_right, double softcap, const std::optional<std::vector<double>>& clip,
    double dropout_p, int64_t dropout_seed, const std::optional<Tensor>&) {
  const char* op = "varlen_attention_qkvpacked";
  AttentionKernel* kernel = kernel_of(qkv.scalar_type(), op, "qkv");
  AttentionParams p{};
  set_packed_attention_inputs(p, qkv, bias, cu_seqlens, op);
  const int64_t batch = cu_seqlens.size(0) - 1;
  set_attention_options(p,
                        {softmax_scale, alibi_slopes, relative_bias, causal, window_left,
                         window_right, softcap, clip, dropout_p, dropout_seed},
                        batch, op);
  auto result = forward(p, qkv.scalar_type(), batch, kernel);
  qkvpacked_variant.record();
  return result;
}

}  // namespace

Tensor attention_of_rows(const Tensor& qkv, int64_t heads, const Tensor& cu_seqlens,
                         const std::optional<Tensor>& alibi_slopes,
                         const std::optional<Tensor>& relative_bias) {
  const char* op = "varlen_attention_qkvpacked";
  const int64_t hidden = qkv.size(1) / 3;
  check(heads > 0 && qkv.size(1) == 3 * hidden && hidden % heads == 0, op,
        "qkv must have 3 * heads * head_dim columns with ", heads, " heads, got ", shape_of(qkv));
  AttentionParams p{};
  p.total_q = qkv.size(0);
  p.heads = p.heads_kv = heads;
  p.head_dim = hidden / heads;
  check_head_dim(p.head_dim, op, "qkv");
  set_packed_parts(p, qkv, hidden, p.head_dim, nullptr, cu_seqlens, op);
  const int64_t batch = cu_seqlens.size(0) - 1;
  set_attention_options(
      p, {std::nullopt, alibi_slopes, relative_bias, false, -1, -1, 0.0, std::nullopt, 0.0, 0},
      batch, op);
  Tensor out = empty_cpu({p.total_q, hidden}, qkv.scalar_type());
  const LaunchScratch logsumexp(p.heads * p.total_q);
  forward(p, out, logsumexp.data, batch, kernel_of(qkv.scalar_type(), op, "qkv"));
  qkvpacked_variant.record();
  return out;
}

}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("varlen_attention", TORCH_BOX(&taut::varlen_attention));
  m.impl("varlen_attention_qkvpacked", TORCH_BOX(&taut::varlen_attention_qkvpacked));
}
