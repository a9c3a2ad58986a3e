// The plan of varlen attention, for the sake of one op on every device: CPU kernels order their own
// work. reference/attention_plan.py says what it holds.
#include <algorithm>
#include <numeric>

#include "cpu/dispatch.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

constexpr int64_t kHeader = 4, kShortRows = 64, kLongRows = 128, kShortLength = 256;

VariantRecord attention_plan_variant("attention_plan");

Tensor attention_plan(const Tensor& cu_seqlens_q, const std::optional<Tensor>& cu_seqlens_k,
                      int64_t total_q, int64_t total_k) {
  const char* op = "attention_plan";
  const Tensor& of_k = cu_seqlens_k ? *cu_seqlens_k : cu_seqlens_q;
  check_cu_seqlens(cu_seqlens_q, total_q, op, "cu_seqlens_q");
  check_cu_seqlens(of_k, total_k, op, "cu_seqlens_k");
  check(cu_seqlens_q.size(0) == of_k.size(0), op, "cu_seqlens_k must be ", shape_of(cu_seqlens_q),
        " like cu_seqlens_q, got ", shape_of(of_k));
  const int64_t batch = cu_seqlens_q.size(0) - 1, rows = kHeader + total_q / kShortRows + 2 * batch;
  const int32_t* begin_q = cu_seqlens_q.const_data_ptr<int32_t>();
  const int32_t* begin_k = of_k.const_data_ptr<int32_t>();
  const auto longest = [&](int64_t b) {
    return std::max(begin_q[b + 1] - begin_q[b], begin_k[b + 1] - begin_k[b]);
  };
  std::vector<int32_t> order(static_cast<size_t>(batch));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return longest(a) > longest(b); });

  Tensor plan = empty_cpu({rows, 2}, ScalarType::Int);
  int32_t* out = static_cast<int32_t*>(plan.mutable_data_ptr());
  std::fill_n(out, 2 * rows, -1);
  std::fill_n(out, 2 * kHeader, 0);
  int32_t* item = out + 2 * kHeader;
  int32_t* sequence = out + 2 * (rows - batch);
  int32_t ends[4] = {0, 0, 0, 0};  // items of sequences longer than 256, 32, 16, and all
  for (int32_t b : order) {
    const int32_t length = longest(b);
    const int64_t step = length > kShortLength ? kLongRows : kShortRows;
    for (int64_t first = 0; first < begin_q[b + 1] - begin_q[b]; first += step) {
      *item++ = b;
      *item++ = static_cast<int32_t>(first);
      ends[0] += length > kShortLength;
      ends[1] += length > 32;
      ends[2] += length > 16;
      ++ends[3];
    }
    *sequence++ = b;
    *sequence++ = length;
  }
  out[1] = begin_q[batch];
  std::copy_n(ends, 4, out + 2);
  attention_plan_variant.record();
  return plan;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("attention_plan", TORCH_BOX(&taut::attention_plan));
}
