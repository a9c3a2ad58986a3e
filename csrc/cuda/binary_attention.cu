// Launchers of attention over packed signs on CUDA. Devices without products of bits, and outputs
// of fp32, go on to Triton.
#include "cuda/attention_arguments.h"
#include "cuda/binary_arguments.h"
#include "cuda/binary_attention_launch.cuh"
#include "cuda/launch.cuh"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

BitRows bit_rows(const Tensor& t, int64_t tokens, int64_t heads, int32_t device, const char* op,
                 const char* name) {
  check_cuda(t, device, op, name);
  check(t.dim() == 2 && t.size(0) == tokens && t.size(1) == heads, op, name, " must be (", tokens,
        ", ", heads, ") words of 64 signs, got ", shape_of(t));
  check_dtype(t, ScalarType::Long, op, name);
  return {static_cast<const uint64_t*>(t.const_data_ptr()), t.stride(0), t.stride(1)};
}

// What both ops share: the device, and the batch with its plan.
class BinaryAttentionCall {
 public:
  const int32_t device;
  const DeviceGuard guard;
  const PersistentLaunch launch;
  const int64_t tokens, heads;
  BinaryBatch batch{};

  BinaryAttentionCall(const char* op, const Tensor& q, const Tensor& cu_seqlens,
                      double softmax_scale)
      : device(q.get_device_index()),
        guard(device),
        launch{device, current_stream(device)},
        tokens(q.dim() == 2 ? q.size(0) : 0),
        heads(q.dim() == 2 ? q.size(1) : 0) {
    check(q.dim() == 2, op, "q must be (total_tokens, heads) words of 64 signs, got ", shape_of(q));
    check(heads < kNoWindow, op, "heads of q must be fewer than 2^30, got ", heads);
    check(softmax_scale > 0 && std::isfinite(softmax_scale), op,
          "softmax_scale must be positive, got ", softmax_scale);
    check_offsets(cu_seqlens, device, op, "cu_seqlens");
    const AttentionBatch sequences{cu_seqlens, cu_seqlens, tokens, tokens};
    check_batch(sequences, device, op);
    plan_ = plan_of(std::nullopt, sequences, device, launch.stream, op);
    const int64_t count = cu_seqlens.size(0) - 1;
    batch.cu_seqlens = cu_seqlens.const_data_ptr<int32_t>();
    batch.plan = plan_->const_data_ptr<int32_t>();
    batch.plan_items = plan_items_of(count, tokens);
    batch.batch = static_cast<int32_t>(count);
    batch.total = static_cast<int32_t>(tokens);
    batch.heads = static_cast<int32_t>(heads);
  }

 private:
  Optional plan_;
};

Tensor binary_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                        std::string mode, std::string tie, double softmax_scale, double alpha,
                        const Optional& thresholds, int64_t rails) {
  const char* op = "binary_attention";
  BinaryAttentionCall call(op, q, cu_seqlens, softmax_scale);
  check(mode == "bool" || mode == "elastic", op, "mode must be one of bool, elastic, got ", mode);
  check(tie == "strict" || tie == "geq", op, "tie must be one of strict, geq, got ", tie);
  BinaryAttentionParams p{};
  p.elastic = mode == "elastic";
  check(!p.elastic || (alpha > 0 && std::isfinite(alpha)), op,
        "alpha must be positive in mode elastic, got ", alpha);
  check(rails >= 0 && rails <= 2, op, "rails must be one of 0, 1, 2, got ", rails);
  check(!thresholds || rails > 0, op, "thresholds must be None with rails = 0");
  Inputs inputs(op, call.device);
  if (thresholds)
    p.thresholds =
        thresholds_of(*thresholds, {call.heads, kChannels}, rails, inputs, call.device, op);
  p.q = bit_rows(q, call.tokens, call.heads, call.device, op, "q");
  p.k = bit_rows(k, call.tokens, call.heads, call.device, op, "k");
  p.v = bit_rows(v, call.tokens, call.heads, call.device, op, "v");
  p.batch = call.batch;
  p.lowest = tie == "strict" ? kChannels / 2 + 1 : kChannels / 2;
  for (int x = 0; x < kDistances; ++x)
    p.exponentials[x] =
        static_cast<int32_t>(std::nearbyint(std::exp(-2 * softmax_scale * x) * ((1 << 24) - 1)));
  p.half_alpha = alpha / 2;
  p.rails = static_cast<int32_t>(rails);
  Tensor out = rails == 0
                   ? empty_cuda({call.tokens, call.heads, kChannels}, ScalarType::Int, call.device)
                   : empty_bits(call.tokens, rails, call.heads, call.device);
  p.out = out.mutable_data_ptr();
  if (out.numel() > 0) launch_binary_attention(p, call.launch);
  record_variant(op, "native");
  return out;
}

Tensor binary_qk_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& cu_seqlens, double softmax_scale,
                           const Optional& alibi_slopes, const Optional& v_scale,
                           std::optional<ScalarType> out_dtype) {
  const char* op = "binary_qk_attention";
  BinaryAttentionCall call(op, q, cu_seqlens, softmax_scale);
  const ScalarType type = v.scalar_type(), dtype = out_dtype.value_or(type);
  const bool is_int8 = type == ScalarType::Char;
  check(is_int8 == v_scale.has_value(), op, "v_scale must be given with v of int8, and only then");
  check(!is_int8 || out_dtype, op, "out_dtype must be given with v of int8");
  check(is_int8 || dtype == type, op, "out_dtype must be that of v, ", dtype_name(type), ", got ",
        dtype_name(dtype));
  check(dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, op, is_int8 ? "out_dtype" : "v",
        " must be bfloat16 or float16, got ", dtype_name(dtype));
  check(
      v.dim() == 3 && v.size(0) == call.tokens && v.size(1) == call.heads && v.size(2) == kChannels,
      op, "v must be (", call.tokens, ", ", call.heads, ", 64), got ", shape_of(v));
  Inputs inputs(op, call.device);
  AttentionInputs values(op, call.device, kChannels, type);
  BinaryQkAttentionParams p{};
  p.q = bit_rows(q, call.tokens, call.heads, call.device, op, "q");
  p.k = bit_rows(k, call.tokens, call.heads, call.device, op, "k");
  p.v = values.rows(v, "v");
  if (is_int8) p.v.token_stride /= 2, p.v.head_stride /= 2;
  p.v_scale = static_cast<const float*>(
      inputs.matrix(v_scale, call.tokens, 1, ScalarType::Float, "v_scale"));
  p.batch = call.batch;
  p.scale = static_cast<float>(softmax_scale);
  p.alibi_slopes = static_cast<const float*>(
      inputs.vector(alibi_slopes, call.heads, ScalarType::Float, "alibi_slopes"));
  Tensor out = empty_cuda({call.tokens, call.heads, kChannels}, dtype, call.device);
  p.out = out.mutable_data_ptr();
  if (out.numel() > 0 && dtype == ScalarType::BFloat16) {
    launch_binary_qk_attention<bf16>(p, call.launch);
  } else if (out.numel() > 0) {
    launch_binary_qk_attention<f16>(p, call.launch);
  }
  record_variant(op, "native");
  return out;
}

void boxed(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  bits_or_triton<TORCH_BOX(&binary_attention)>("binary_attention", stack, inputs, outputs);
}
void boxed_qk(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const char* op = "binary_qk_attention";
  const FirstTensor values(stack + 2);
  const bool is_served =
      values.is_half() || (values.is_int8() && optional_dtype(stack + 7) != ScalarType::Float);
  if (is_served && has_bit_products(FirstTensor(stack)))
    return TORCH_BOX(&binary_qk_attention)(stack, inputs, outputs);
  call_triton(op, stack);
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CUDA, m) {
  m.impl("binary_attention", &taut::boxed);
  m.impl("binary_qk_attention", &taut::boxed_qk);
}
