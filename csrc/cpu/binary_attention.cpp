// Launchers of attention over packed signs on the CPU.
#include "cpu/binary_attention.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

VariantRecord attention_variant("binary_attention");
VariantRecord qk_attention_variant("binary_qk_attention");

constexpr int64_t kHeadDim = 64;

BitInput bit_input(const Tensor& t, int64_t tokens, int64_t heads, const char* op,
                   const char* name) {
  check_cpu(t, op, name);
  if (t.dim() != 2 || t.size(0) != tokens || t.size(1) != heads)
    check(false, op, name, " must be (", tokens, ", ", heads, ") words of 64 signs, got ",
          shape_of(t));
  check_dtype(t, ScalarType::Long, op, name);
  return {static_cast<const uint64_t*>(t.const_data_ptr()), t.stride(0), t.stride(1)};
}

struct Shape {
  int64_t tokens, heads, batch;
  const int32_t* cu_seqlens;
};

Shape check_shape(const Tensor& q, const Tensor& cu_seqlens, double softmax_scale, const char* op) {
  check(q.dim() == 2, op, "q must be (total_tokens, heads) words of 64 signs, got ", shape_of(q));
  check_cu_seqlens(cu_seqlens, q.size(0), op, "cu_seqlens");
  check(softmax_scale > 0 && std::isfinite(softmax_scale), op,
        "softmax_scale must be positive, got ", softmax_scale);
  return {q.size(0), q.size(1), cu_seqlens.size(0) - 1, cu_seqlens.const_data_ptr<int32_t>()};
}

// body(task, head, scratch) for all rows of all sequences, those with most work first; `bytes` of
// scratch by number of keys.
template <class Body>
void for_rows(const Shape& s, int64_t (*bytes)(int64_t keys), const Body& body) {
  std::vector<AttentionTask> tasks;
  int64_t longest = 0, work = 0;
  const auto keys = [&](const AttentionTask& t) {
    return int64_t{s.cu_seqlens[t.sequence + 1]} - s.cu_seqlens[t.sequence];
  };
  for (int64_t b = 0; b < s.batch; ++b) {
    const int32_t rows = s.cu_seqlens[b + 1] - s.cu_seqlens[b];
    longest = std::max<int64_t>(longest, rows);
    work += int64_t{rows} * rows * s.heads;
    for (int32_t first = 0; first < rows; first += kAttentionRows)
      tasks.push_back(
          {static_cast<int32_t>(b), first, std::min<int32_t>(rows - first, kAttentionRows)});
  }
  std::stable_sort(tasks.begin(), tasks.end(), [&](const AttentionTask& a, const AttentionTask& b) {
    return a.rows * keys(a) > b.rows * keys(b);
  });
  const int64_t floats = (bytes(longest) + 3) / 4;
  const int64_t count = static_cast<int64_t>(tasks.size()) * s.heads;
  const auto run = [&](int64_t i) {
    body(tasks[static_cast<size_t>(i / s.heads)], i % s.heads, thread_scratch(floats));
  };
  constexpr int64_t kWorthTwoThreads = 1 << 15;  // scores, some 5 us of one core
  if (work < kWorthTwoThreads) {
    for (int64_t i = 0; i < count; ++i) run(i);
  } else {
    parallel_tasks(count, run);
  }
}

void clear_rest(const Shape& s, const Tensor& out) {
  const int64_t used = s.cu_seqlens[s.batch];
  if (used == s.tokens) return;
  const int64_t row_bytes = out.numel() / s.tokens * static_cast<int64_t>(out.element_size());
  std::memset(static_cast<char*>(out.mutable_data_ptr()) + used * row_bytes, 0,
              static_cast<size_t>((s.tokens - used) * row_bytes));
}

ExponentialTable make_table(double softmax_scale) {
  ExponentialTable table{};
  for (int x = 0; x <= 64; ++x) {
    const double e = std::exp(-2 * softmax_scale * x) * ((1 << 24) - 1);
    table.whole[x] = static_cast<int32_t>(std::nearbyint(e));
    for (int i = 0; i < 3; ++i) table.byte[i][x] = static_cast<uint8_t>(table.whole[x] >> (8 * i));
  }
  return table;
}

Tensor binary_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                        const std::string& mode, const std::string& tie, double softmax_scale,
                        double alpha, const std::optional<Tensor>& thresholds, int64_t rails) {
  const char* op = "binary_attention";
  const Shape s = check_shape(q, cu_seqlens, softmax_scale, op);
  check(mode == "bool" || mode == "elastic", op, "mode must be one of bool, elastic, got ", mode);
  check(tie == "strict" || tie == "geq", op, "tie must be one of strict, geq, got ", tie);
  const bool elastic = mode == "elastic";
  check(!elastic || (alpha > 0 && std::isfinite(alpha)), op,
        "alpha must be positive in mode elastic, got ", alpha);
  check(rails >= 0 && rails <= 2, op, "rails must be one of 0, 1, 2, got ", rails);
  if (thresholds) {
    const Tensor& t = *thresholds;
    check_cpu(t, op, "thresholds");
    const int64_t dim = rails == 2 ? 3 : 2;
    const bool fits = rails > 0 && t.dim() == dim && (dim == 2 || t.size(0) == 3) &&
                      t.size(dim - 2) == s.heads && t.size(dim - 1) == kHeadDim;
    if (!fits)
      check(false, op, "thresholds must be (", s.heads, ", 64) with rails = 1, (3, ", s.heads,
            ", 64) with rails = 2, got ", shape_of(t));
    check_dtype(t, ScalarType::Int, op, "thresholds");
    check(t.is_contiguous(), op, "thresholds must be contiguous");
  }
  const ExponentialTable table = elastic ? make_table(softmax_scale) : ExponentialTable{};
  BinaryAttentionParams p{};
  p.q = bit_input(q, s.tokens, s.heads, op, "q");
  p.k = bit_input(k, s.tokens, s.heads, op, "k");
  p.v = bit_input(v, s.tokens, s.heads, op, "v");
  p.cu_seqlens = s.cu_seqlens;
  p.heads = s.heads;
  p.limit = tie == "strict" ? kHeadDim / 2 : kHeadDim / 2 + 1;
  p.table = elastic ? &table : nullptr;
  p.half_alpha = alpha / 2;
  p.thresholds = data_or_null<int32_t>(thresholds);
  p.rails = static_cast<int>(rails);
  Tensor out = rails == 0   ? empty_cpu({s.tokens, s.heads, kHeadDim}, ScalarType::Int)
               : rails == 1 ? empty_cpu({s.tokens, s.heads}, ScalarType::Long)
                            : empty_cpu({s.tokens, 2, s.heads}, ScalarType::Long);
  p.out = out.mutable_data_ptr();
  BinaryAttention* kernel = TAUT_KERNEL(binary_attention_rows);
  for_rows(s, binary_attention_scratch_bytes,
           [&](const AttentionTask& task, int64_t head, void* scratch) {
             kernel(p, task, head, scratch);
           });
  clear_rest(s, out);
  attention_variant.record();
  return out;
}

Tensor binary_qk_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& cu_seqlens, double softmax_scale,
                           const std::optional<Tensor>& alibi_slopes,
                           const std::optional<Tensor>& v_scale,
                           std::optional<ScalarType> out_dtype) {
  const char* op = "binary_qk_attention";
  const Shape s = check_shape(q, cu_seqlens, softmax_scale, op);
  check_cpu(v, op, "v");
  if (v.dim() != 3 || v.size(0) != s.tokens || v.size(1) != s.heads || v.size(2) != kHeadDim)
    check(false, op, "v must be (", s.tokens, ", ", s.heads, ", 64), got ", shape_of(v));
  check(v.stride(2) == 1 || v.numel() == 0, op, "v must have contiguous channels");
  if (alibi_slopes) check_vector(*alibi_slopes, s.heads, ScalarType::Float, op, "alibi_slopes");
  const bool codes = v.scalar_type() == ScalarType::Char;
  check(codes == v_scale.has_value(), op, "v_scale must be given with v of int8, and only then");
  if (codes) {
    check_rows(*v_scale, s.tokens, 1, ScalarType::Float, op, "v_scale");
    check(v_scale->is_contiguous(), op, "v_scale must be contiguous");
    check(out_dtype.has_value(), op, "out_dtype must be given with v of int8");
  } else {
    check(!out_dtype || *out_dtype == v.scalar_type(), op, "out_dtype must be that of v");
  }
  const ScalarType dtype = out_dtype.value_or(v.scalar_type());
  BinaryQkAttention* kernel =
      float_kernel(dtype, op, codes ? "out_dtype" : "v", TAUT_KERNEL(binary_qk_attention_f32),
                   TAUT_KERNEL(binary_qk_attention_bf16), TAUT_KERNEL(binary_qk_attention_f16));
  BinaryQkAttentionParams p{};
  p.q = bit_input(q, s.tokens, s.heads, op, "q");
  p.k = bit_input(k, s.tokens, s.heads, op, "k");
  p.v = {v.const_data_ptr(), nullptr, v.stride(0), v.stride(1)};
  p.v_scale = data_or_null<float>(v_scale);
  p.cu_seqlens = s.cu_seqlens;
  p.heads = s.heads;
  p.softmax_scale = static_cast<float>(softmax_scale);
  p.alibi_slopes = data_or_null<float>(alibi_slopes);
  Tensor out = empty_cpu({s.tokens, s.heads, kHeadDim}, dtype);
  p.out = out.mutable_data_ptr();
  for_rows(s, binary_qk_attention_scratch_bytes,
           [&](const AttentionTask& task, int64_t head, void* scratch) {
             kernel(p, task, head, scratch);
           });
  clear_rest(s, out);
  qk_attention_variant.record();
  return out;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("binary_attention", TORCH_BOX(&taut::binary_attention));
  m.impl("binary_qk_attention", TORCH_BOX(&taut::binary_qk_attention));
}
