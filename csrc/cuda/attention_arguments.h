// What the launchers of attention on CUDA share: checked arguments -> AttentionParams.
#pragma once
#include <algorithm>
#include <cmath>

#include "cuda/attention.h"
#include "cuda/tensor.h"

namespace taut {

// A batch of sequences on both sides and the order to take them in.
struct AttentionBatch {
  const Tensor& cu_seqlens_q;
  const Tensor& cu_seqlens_k;
  int64_t total_q, total_k;
};

struct AttentionOptions {
  std::optional<double> softmax_scale;
  const std::optional<Tensor>& alibi_slopes;
  const std::optional<Tensor>& relative_bias;
  bool causal;
  int64_t window_left, window_right;
  double softcap;
  const std::optional<std::vector<double>>& clip;
  double dropout_p;
  int64_t dropout_seed;
};

// A launch's inputs, and the copies made of those that kernels cannot read in place.
class AttentionInputs {
 public:
  AttentionInputs(const char* op, int32_t device, int64_t head_dim, ScalarType dtype)
      : op_(op), device_(device), head_dim_(head_dim), dtype_(dtype) {}

  // `t` as (tokens, heads, head_dim).
  AttentionRows rows(const Tensor& t, const char* name) {
    check_cuda(t, device_, op_, name);
    check(t.dim() == 3 && t.size(2) == head_dim_, op_, name, " must be (tokens, heads, ", head_dim_,
          "), got ", shape_of(t));
    check(t.scalar_type() == dtype_, op_, name, " must have the dtype of q, ", dtype_name(dtype_),
          ", got ", dtype_name(t.scalar_type()));
    const Tensor& readable = readable_rows(t);
    return {readable.const_data_ptr(), nullptr, static_cast<int32_t>(readable.stride(0)),
            static_cast<int32_t>(readable.stride(1))};
  }

  // `t` with a contiguous last dimension, 16-byte aligned rows and strides below 2^31.
  const Tensor& readable_rows(const Tensor& t) {
    const int64_t last = t.dim() - 1;
    bool fits = t.stride(last) == 1 && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
    for (int64_t i = 0; i < last; ++i)
      fits = fits && t.stride(i) * t.element_size() % 16 == 0 && t.stride(i) < int64_t{1} << 31;
    if (fits || t.numel() == 0) return t;
    const Tensor compact = torch::stable::contiguous(t);
    const bool aligned = reinterpret_cast<uintptr_t>(compact.const_data_ptr()) % 16 == 0;
    copies_.push_back(aligned ? compact : torch::stable::clone(compact));
    return copies_.back();
  }

 private:
  const char* op_;
  int32_t device_;
  int64_t head_dim_;
  ScalarType dtype_;
  std::vector<Tensor> copies_;
};

inline void check_offsets(const Tensor& cu, int32_t device, const char* op, const char* name) {
  check_cuda(cu, device, op, name);
  check(cu.dim() == 1 && cu.size(0) >= 1, op, name, " must be (batch + 1,), got ", shape_of(cu));
  check_dtype(cu, ScalarType::Int, op, name);
  check(cu.is_contiguous(), op, name, " must be contiguous");
}

inline void check_batch(const AttentionBatch& batch, int32_t device, const char* op) {
  check_offsets(batch.cu_seqlens_q, device, op, "cu_seqlens_q");
  check_offsets(batch.cu_seqlens_k, device, op, "cu_seqlens_k");
  check(batch.cu_seqlens_q.size(0) == batch.cu_seqlens_k.size(0), op, "cu_seqlens_k must be ",
        shape_of(batch.cu_seqlens_q), " like cu_seqlens_q, got ", shape_of(batch.cu_seqlens_k));
  // Sums of lengths and limits of windows stay inside int32.
  for (int64_t total : {batch.total_q, batch.total_k})
    check(total >= 0 && total < kNoWindow, op, "tokens must be fewer than 2^30, got ", total);
}

inline int32_t plan_items_of(int64_t batch, int64_t total_q) {
  return static_cast<int32_t>(total_q / kShortRows + batch);
}

// `given`, or a new plan; `batch` is checked.
Tensor plan_of(const std::optional<Tensor>& given, const AttentionBatch& batch, int32_t device,
               cudaStream_t stream, const char* op);

inline void set_batch(AttentionParams& p, const AttentionBatch& batch, const Tensor& plan) {
  p.cu_seqlens_q = batch.cu_seqlens_q.const_data_ptr<int32_t>();
  p.cu_seqlens_k = batch.cu_seqlens_k.const_data_ptr<int32_t>();
  p.batch = static_cast<int32_t>(batch.cu_seqlens_q.size(0) - 1);
  p.total_q = static_cast<int32_t>(batch.total_q);
  p.total_k = static_cast<int32_t>(batch.total_k);
  p.plan = plan.const_data_ptr<int32_t>();
  p.plan_items = plan_items_of(p.batch, batch.total_q);
}

inline void set_options(AttentionParams& p, const AttentionOptions& o, int32_t device,
                        const char* op) {
  check(p.head_dim >= 16 && p.head_dim <= 256 && p.head_dim % 8 == 0, op,
        "q must have a head_dim from 16 to 256 that is a multiple of 8, got ", p.head_dim);
  const double scale =
      o.softmax_scale ? *o.softmax_scale : 1 / std::sqrt(static_cast<double>(p.head_dim));
  const auto fits = [](double x) { return std::isfinite(static_cast<float>(x)); };
  check(scale > 0 && fits(scale), op, "softmax_scale must be positive in fp32, got ", scale);
  check(o.softcap >= 0 && fits(o.softcap), op, "softcap must be at least 0 in fp32, got ",
        o.softcap);
  p.scale = static_cast<float>(scale);
  p.softcap = static_cast<float>(o.softcap);
  if (o.alibi_slopes) {
    const Tensor& slopes = *o.alibi_slopes;
    const bool per_sequence = slopes.dim() == 2;
    check_cuda(slopes, device, op, "alibi_slopes");
    check(slopes.scalar_type() == ScalarType::Float && slopes.is_contiguous() &&
              (per_sequence ? slopes.size(0) == p.batch && slopes.size(1) == p.heads
                            : slopes.dim() == 1 && slopes.size(0) == p.heads),
          op, "alibi_slopes must be contiguous float32 of shape (", p.heads, ",) or (", p.batch,
          ", ", p.heads, "), got ", shape_of(slopes));
    p.alibi_slopes = slopes.const_data_ptr<float>();
    p.slopes_stride = per_sequence ? p.heads : 0;
  }
  if (o.relative_bias) {
    const Tensor& bias = *o.relative_bias;
    check_cuda(bias, device, op, "relative_bias");
    check(bias.scalar_type() == ScalarType::Float && bias.is_contiguous() && bias.dim() == 2 &&
              bias.size(0) == p.heads && bias.size(1) % 2 == 1 && bias.size(1) < kNoWindow,
          op, "relative_bias must be contiguous float32 of shape (", p.heads, ", 2R + 1), got ",
          shape_of(bias));
    p.relative_bias = bias.const_data_ptr<float>();
    p.relative_limit = static_cast<int32_t>(bias.size(1) / 2);
  }
  check(o.window_left >= -1 && o.window_right >= -1, op,
        "window_size must be (left, right), each at least -1, got (", o.window_left, ", ",
        o.window_right, ")");
  const auto limit = [](int64_t side) {
    return static_cast<int32_t>(side < 0 ? kNoWindow : std::min<int64_t>(side, kNoWindow));
  };
  p.window_left = limit(o.window_left);
  p.window_right = limit(o.causal ? 0 : o.window_right);
  if (o.clip) {
    const std::vector<double>& clip = *o.clip;
    check(clip.size() == 2 && clip[0] >= 1 && clip[1] <= 0 && fits(clip[0] - clip[1]), op,
          "clip must be (zeta, gamma) in fp32 with zeta >= 1 and gamma <= 0");
    p.clip = true;
    p.clip_slope = static_cast<float>(clip[0] - clip[1]);
    p.clip_offset = static_cast<float>(clip[1]);
  }
  check(o.dropout_p >= 0 && o.dropout_p < 1, op, "dropout_p must be in [0, 1), got ", o.dropout_p);
  p.dropout = o.dropout_p > 0;
  p.dropout_threshold = static_cast<uint32_t>(o.dropout_p * 4294967296.0);
  p.keep_scale = static_cast<float>(1.0 / (1.0 - o.dropout_p));
  p.seed[0] = static_cast<uint32_t>(o.dropout_seed);
  p.seed[1] = static_cast<uint32_t>(static_cast<uint64_t>(o.dropout_seed) >> 32);
}

// Checks q, k and v and fills in what describes them.
inline void set_qkv(AttentionParams& p, AttentionInputs& inputs, const Tensor& q, const Tensor& k,
                    const Tensor& v, const char* op) {
  p.heads = static_cast<int32_t>(q.size(1));
  p.head_dim = static_cast<int32_t>(q.size(2));
  p.q = inputs.rows(q, "q");
  p.k = inputs.rows(k, "k");
  p.v = inputs.rows(v, "v");
  check(v.size(0) == k.size(0) && v.size(1) == k.size(1), op, "v must have the shape of k ",
        shape_of(k), ", got ", shape_of(v));
  check(k.size(1) > 0 && p.heads % k.size(1) == 0, op,
        "k must have a number of heads that divides those of q, ", p.heads, ", got ", k.size(1));
  p.group = static_cast<int32_t>(p.heads / k.size(1));
}

inline void check_packed(const Tensor& qkv, const char* op) {
  check(qkv.dim() == 4 && qkv.size(1) == 3, op, "qkv must be (total, 3, heads, head_dim), got ",
        shape_of(qkv));
}

// The same from (total, 3, heads, head_dim) and a bias (3, heads, head_dim).
inline void set_packed(AttentionParams& p, AttentionInputs& inputs, const Tensor& qkv,
                       const std::optional<Tensor>& bias, int32_t device, const char* op) {
  p.heads = static_cast<int32_t>(qkv.size(2));
  p.head_dim = static_cast<int32_t>(qkv.size(3));
  p.group = 1;
  check(p.heads > 0, op, "qkv must have heads, got ", shape_of(qkv));
  const Tensor& rows = inputs.readable_rows(qkv);
  const char* bias_data = nullptr;
  if (bias) {
    check_cuda(*bias, device, op, "bias");
    check(bias->dim() == 3 && bias->size(0) == 3 && bias->size(1) == p.heads &&
              bias->size(2) == p.head_dim && bias->is_contiguous() &&
              bias->scalar_type() == qkv.scalar_type(),
          op, "bias must be contiguous (3, ", p.heads, ", ", p.head_dim,
          ") of the dtype of qkv, got ", shape_of(*bias));
    bias_data = static_cast<const char*>(bias->const_data_ptr());
  }
  const char* data = static_cast<const char*>(rows.const_data_ptr());
  AttentionRows* inputs_of[3] = {&p.q, &p.k, &p.v};
  for (int64_t i = 0; i < 3; ++i)
    *inputs_of[i] = {data + 2 * i * rows.stride(1),
                     bias ? bias_data + 2 * i * p.heads * p.head_dim : nullptr,
                     static_cast<int32_t>(rows.stride(0)), static_cast<int32_t>(rows.stride(2))};
}

}  // namespace taut
