// What the launchers of attention share: checked arguments -> AttentionParams, scratch.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/attention.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {

// Multiply-adds below which waking other threads costs more than it saves.
constexpr int64_t kSerialAttentionWork = 1 << 19;

// A contiguous fp32 tensor; its shape is for the caller to check first.
inline void check_contiguous_float(const Tensor& t, const char* op, const char* name) {
  check_cpu(t, op, name);
  check_dtype(t, ScalarType::Float, op, name);
  check(t.is_contiguous(), op, name, " must be contiguous");
}

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

inline void set_attention_options(AttentionParams& p, const AttentionOptions& o, int64_t batch,
                                  const char* op) {
  const double scale =
      o.softmax_scale ? *o.softmax_scale : 1 / std::sqrt(static_cast<double>(p.head_dim));
  const auto fits = [](double x) { return std::isfinite(static_cast<float>(x)); };
  check(scale > 0 && fits(scale), op, "softmax_scale must be positive in fp32, got ", scale);
  check(o.softcap >= 0 && fits(o.softcap), op, "softcap must be at least 0 in fp32, got ",
        o.softcap);
  p.softmax_scale = static_cast<float>(scale);
  p.softcap = static_cast<float>(o.softcap);
  if (o.alibi_slopes) {
    const Tensor& slopes = *o.alibi_slopes;
    const bool per_sequence = slopes.dim() == 2;
    check(per_sequence ? slopes.size(0) == batch && slopes.size(1) == p.heads
                       : slopes.dim() == 1 && slopes.size(0) == p.heads,
          op, "alibi_slopes must be (", p.heads, ",) or (", batch, ", ", p.heads, "), got ",
          shape_of(slopes));
    check_contiguous_float(slopes, op, "alibi_slopes");
    p.alibi_slopes = slopes.const_data_ptr<float>();
    p.slopes_stride = per_sequence ? p.heads : 0;
  }
  if (o.relative_bias) {
    const Tensor& bias = *o.relative_bias;
    check(bias.dim() == 2 && bias.size(0) == p.heads && bias.size(1) % 2 == 1, op,
          "relative_bias must be (", p.heads, ", 2R + 1), got ", shape_of(bias));
    check_contiguous_float(bias, op, "relative_bias");
    p.relative_bias = bias.const_data_ptr<float>();
    p.relative_limit = bias.size(1) / 2;
  }
  check(o.window_left >= -1 && o.window_right >= -1, op,
        "window_size must be (left, right), each at least -1, got (", o.window_left, ", ",
        o.window_right, ")");
  constexpr int64_t kUnlimited = int64_t{1} << 40;
  const int64_t left = o.window_left, right = o.causal ? 0 : o.window_right;
  p.window_left = left < 0 ? kUnlimited : std::min(left, kUnlimited);
  p.window_right = right < 0 ? kUnlimited : std::min(right, kUnlimited);
  p.by_distance = p.alibi_slopes || p.relative_bias || left >= 0 || right >= 0;
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

inline void check_head_dim(int64_t head_dim, const char* op, const char* name) {
  check(head_dim >= 16 && head_dim <= 256 && head_dim % 8 == 0, op, name,
        " must have a head_dim from 16 to 256 that is a multiple of 8, got ", head_dim);
}

// `t` as (tokens, heads, head_dim) with any strides but the last.
inline AttentionInput attention_input(const Tensor& t, int64_t head_dim, ScalarType dtype,
                                      const char* op, const char* name) {
  check_cpu(t, op, name);
  check(t.dim() == 3 && t.size(2) == head_dim, op, name, " must be (tokens, heads, ", head_dim,
        "), got ", shape_of(t));
  check_dtype(t, dtype, op, name);
  check(t.stride(2) == 1 || t.numel() == 0, op, name, " must have contiguous channels");
  return {t.const_data_ptr(), nullptr, t.stride(0), t.stride(1)};
}

// Checks q, k, v and fills in what describes them.
inline void set_attention_inputs(AttentionParams& p, const Tensor& q, const Tensor& k,
                                 const Tensor& v, const Tensor& cu_seqlens_q,
                                 const std::optional<Tensor>& cu_seqlens_k, const char* op) {
  check(q.dim() == 3, op, "q must be (total_q, heads, head_dim), got ", shape_of(q));
  p.total_q = q.size(0);
  p.heads = q.size(1);
  p.head_dim = q.size(2);
  check_head_dim(p.head_dim, op, "q");
  p.q = attention_input(q, p.head_dim, q.scalar_type(), op, "q");
  p.k = attention_input(k, p.head_dim, q.scalar_type(), op, "k");
  p.v = attention_input(v, p.head_dim, q.scalar_type(), op, "v");
  p.heads_kv = k.size(1);
  check(v.size(0) == k.size(0) && v.size(1) == p.heads_kv, op, "v must have the shape of k ",
        shape_of(k), ", got ", shape_of(v));
  check(p.heads_kv > 0 && p.heads % p.heads_kv == 0, op,
        "k must have a number of heads that divides those of q, ", p.heads, ", got ", p.heads_kv);
  check_cu_seqlens(cu_seqlens_q, p.total_q, op, "cu_seqlens_q");
  p.cu_seqlens_q = p.cu_seqlens_k = cu_seqlens_q.const_data_ptr<int32_t>();
  if (!cu_seqlens_k) {
    const int32_t last = p.cu_seqlens_q[cu_seqlens_q.size(0) - 1];
    check(last <= k.size(0), op, "cu_seqlens_k must end within total_tokens = ", k.size(0),
          ", got ", last);
    return;
  }
  check_cu_seqlens(*cu_seqlens_k, k.size(0), op, "cu_seqlens_k");
  check(cu_seqlens_q.size(0) == cu_seqlens_k->size(0), op, "cu_seqlens_k must be ",
        shape_of(cu_seqlens_q), " like cu_seqlens_q, got ", shape_of(*cu_seqlens_k));
  p.cu_seqlens_k = cu_seqlens_k->const_data_ptr<int32_t>();
}

// q, k and v of a token lie `part_stride` apart, their heads `head_stride`; p has its sizes.
inline void set_packed_parts(AttentionParams& p, const Tensor& qkv, int64_t part_stride,
                             int64_t head_stride, const char* bias, const Tensor& cu_seqlens,
                             const char* op) {
  check_cu_seqlens(cu_seqlens, p.total_q, op, "cu_seqlens");
  p.cu_seqlens_q = p.cu_seqlens_k = cu_seqlens.const_data_ptr<int32_t>();
  const int64_t bytes = qkv.scalar_type() == ScalarType::Float ? 4 : 2;
  const char* data = static_cast<const char*>(qkv.const_data_ptr());
  AttentionInput* inputs[3] = {&p.q, &p.k, &p.v};
  for (int64_t i = 0; i < 3; ++i)
    *inputs[i] = {data + i * part_stride * bytes,
                  bias ? bias + i * p.heads * p.head_dim * bytes : nullptr, qkv.stride(0),
                  head_stride};
}

inline void set_packed_attention_inputs(AttentionParams& p, const Tensor& qkv,
                                        const std::optional<Tensor>& bias, const Tensor& cu_seqlens,
                                        const char* op) {
  check_cpu(qkv, op, "qkv");
  check(qkv.dim() == 4 && qkv.size(1) == 3, op, "qkv must be (total, 3, heads, head_dim), got ",
        shape_of(qkv));
  p.total_q = qkv.size(0);
  p.heads = p.heads_kv = qkv.size(2);
  p.head_dim = qkv.size(3);
  check_head_dim(p.head_dim, op, "qkv");
  check(qkv.stride(3) == 1 || qkv.numel() == 0, op, "qkv must have contiguous channels");
  const char* bias_data = nullptr;
  if (bias) {
    check_cpu(*bias, op, "bias");
    check(bias->dim() == 3 && bias->size(0) == 3 && bias->size(1) == p.heads &&
              bias->size(2) == p.head_dim,
          op, "bias must be (3, ", p.heads, ", ", p.head_dim, "), got ", shape_of(*bias));
    check_dtype(*bias, qkv.scalar_type(), op, "bias");
    check(bias->is_contiguous(), op, "bias must be contiguous");
    bias_data = static_cast<const char*>(bias->const_data_ptr());
  }
  set_packed_parts(p, qkv, qkv.stride(1), qkv.stride(2), bias_data, cu_seqlens, op);
}

}  // namespace taut
