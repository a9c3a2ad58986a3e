// A whole encoder layer in one call on the CPU: the launchers of its parts, one behind the other.
// What it saves is the way from Python to each of them, most of the time of a short text.
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/launchers.h"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;
using Tensors = std::vector<Optional>;

VariantRecord layer_variant("encoder_layer");

// out_features, bits (0: a dense weight), group_size, x_bits, x_group_size.
constexpr size_t kNumbers = 5;

// A linear layer. tensors: packed, scale, zero_point, codebook, bias.
struct Linear {
  const Tensors& tensors;
  std::array<int64_t, kNumbers> numbers;

  bool lowbit() const { return numbers[1] != 0; }
};

// tensors: weight, bias, and those of what is quantized.
struct Norm {
  const Tensors& tensors;
  double eps;
};

// Rows between linear layers: floats, and the same as int8 where the next one takes that.
struct Rows {
  Tensor floats;
  Optional q, scale;

  const Tensor& best() const { return q ? *q : floats; }
};

constexpr const char* kOp = "encoder_layer";

Linear linear_of(const Tensors& tensors, const std::vector<int64_t>& formats, size_t index,
                 const char* name) {
  check(tensors.size() == 5 && tensors[0], kOp, name,
        " must be (packed, scale, zero_point, codebook, bias), got ", tensors.size(), " tensors");
  const int64_t* n = formats.data() + kNumbers * index;
  check(n[1] == 0 || tensors[1], kOp, name, " must have a scale with low-bit weights, got None");
  check(n[4] == 0 || n[4] == n[2], kOp, name,
        " must have an x_group_size of 0 or group_size = ", n[2], ", got ", n[4]);
  return {tensors, {n[0], n[1], n[2], n[3], n[4]}};
}

// As the linear layer takes them: integers by groups of columns are made here, those of whole rows
// by its own op.
Rows given_to(const Linear& linear, const Rows& x) {
  const int64_t x_bits = linear.numbers[3], x_group_size = linear.numbers[4];
  if (x.q || x_group_size == 0) return x;
  auto [q, scale] = quantize_per_token(x.floats, std::nullopt, std::nullopt, x_bits, "absmax",
                                       false, x_group_size);
  return {x.floats, std::move(q), std::move(scale)};
}

Tensor multiply(const Linear& linear, const Rows& rows, const std::string& activation) {
  const auto& [out_features, bits, group_size, x_bits, x_group_size] = linear.numbers;
  const Tensors& t = linear.tensors;
  if (!linear.lowbit()) return packed_linear(rows.floats, *t[0], t[4], out_features, activation);
  const Rows x = given_to(linear, rows);
  return lowbit_linear(x.best(), x.scale, *t[0], *t[1], t[2], t[3], t[4], out_features, bits,
                       group_size, x_bits, activation, std::nullopt, 0.0, x.floats.scalar_type());
}

Rows multiply_and_normalize(const Linear& linear, const Rows& rows, const Tensor& residual,
                            const Norm& norm, bool quantize) {
  const auto& [out_features, bits, group_size, x_bits, x_group_size] = linear.numbers;
  const Tensors &t = linear.tensors, &n = norm.tensors;
  if (!linear.lowbit())
    return {
        packed_linear_layer_norm(rows.floats, *t[0], t[4], residual, n[0], n[1], norm.eps), {}, {}};
  const Rows x = given_to(linear, rows);
  auto [out, q, scale] = lowbit_linear_layer_norm(x.best(), x.scale, *t[0], *t[1], t[2], t[3], t[4],
                                                  out_features, bits, group_size, x_bits, residual,
                                                  n[0], n[1], norm.eps, quantize, n[2], n[3]);
  if (!quantize) return {std::move(out), {}, {}};
  return {std::move(out), std::move(q), std::move(scale)};
}

// The feed-forward network up to the layer `down`.
Rows inner_of(const Linear& up, const Rows& rows, const std::string& activation, bool glu,
              int64_t inner_group_size) {
  if (glu) return {bias_glu(multiply(up, rows, "none"), std::nullopt, activation), {}, {}};
  if (inner_group_size < 0) return {multiply(up, rows, activation), {}, {}};
  const auto& [out_features, bits, group_size, x_bits, x_group_size] = up.numbers;
  const Tensors& t = up.tensors;
  const Rows x = given_to(up, rows);
  auto [q, scale] =
      lowbit_linear_quantize(x.best(), x.scale, *t[0], *t[1], t[2], t[3], t[4], out_features, bits,
                             group_size, x_bits, activation, 8, inner_group_size);
  return {x.floats, std::move(q), std::move(scale)};
}

std::tuple<Tensor, Tensor, Tensor> encoder_layer(
    const Tensor& hidden, const Optional& q, const Optional& scale, const Tensor& cu_seqlens,
    const Optional& alibi_slopes, const Optional& relative_bias, const Tensors& qkv,
    const Tensors& out, const Tensors& up, const Tensors& down, const std::vector<int64_t>& formats,
    const Tensors& attention_norm, const Tensors& output_norm, int64_t heads,
    const std::string& activation, bool glu, bool quantize_up, int64_t inner_group_size,
    double attention_eps, double output_eps, bool quantize) {
  check(hidden.dim() == 2, kOp, "hidden must be (total_tokens, hidden_size), got ",
        shape_of(hidden));
  check(formats.size() == 4 * kNumbers, kOp,
        "formats must be 5 numbers of each of 4 linear layers, got ", formats.size());
  check(attention_norm.size() == 4 && output_norm.size() == 4, kOp,
        "norms must be (weight, bias, quant_weight, quant_bias)");
  const Linear to_qkv = linear_of(qkv, formats, 0, "qkv"),
               to_out = linear_of(out, formats, 1, "out"),
               to_inner = linear_of(up, formats, 2, "up"),
               from_inner = linear_of(down, formats, 3, "down");
  check(q.has_value() == scale.has_value(), kOp,
        "scale must be given with q and without it not, got one of them");
  check(to_qkv.lowbit() || !q, kOp, "q must be None with a dense `qkv`, got a tensor");
  check(to_qkv.numbers[0] == 3 * hidden.size(1), kOp, "qkv must have ", 3 * hidden.size(1),
        " out_features, got ", to_qkv.numbers[0]);
  check(!quantize_up || (to_out.lowbit() && to_inner.lowbit()), kOp,
        "quantize_up must be False unless out and up are low-bit, got True");
  check(inner_group_size == -1 ||
            (inner_group_size >= 0 && to_inner.lowbit() && from_inner.lowbit() && !glu),
        kOp, "inner_group_size must be -1 unless up and down are low-bit without gates, got ",
        inner_group_size);

  const Rows x{hidden, q, scale};
  const Rows context{attention_of_rows(multiply(to_qkv, x, "none"), heads, cu_seqlens, alibi_slopes,
                                       relative_bias),
                     {},
                     {}};
  const Rows middle =
      multiply_and_normalize(to_out, context, hidden, {attention_norm, attention_eps}, quantize_up);
  const Rows inner = inner_of(to_inner, middle, activation, glu, inner_group_size);
  Rows result =
      multiply_and_normalize(from_inner, inner, middle.floats, {output_norm, output_eps}, quantize);
  layer_variant.record();
  const auto given = [](Optional& t, ScalarType dtype) {
    return t ? std::move(*t) : empty_cpu({0, 0}, dtype);
  };
  Tensor codes = given(result.q, ScalarType::Char);
  Tensor scales = given(result.scale, ScalarType::Float);
  return {std::move(result.floats), std::move(codes), std::move(scales)};
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("encoder_layer", TORCH_BOX(&taut::encoder_layer));
}
