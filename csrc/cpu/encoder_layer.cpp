// Encoder layers in one call on the CPU: the launchers of their parts, one behind the other. What
// it saves is the way from Python to each of them, most of the time of a short text.
#include "cpu/encoder_layer.h"

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/launchers.h"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;
using Tensors = std::vector<Optional>;

VariantRecord layers_variant("encoder_layers");

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

constexpr const char* kOp = "encoder_layers";

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

// What stays the same from call to call.
struct Layer {
  Tensors qkv, out, up, down;
  std::vector<int64_t> formats;
  Tensors attention_norm, output_norm;
  int64_t heads;
  std::string activation;
  bool glu, quantize_up;
  int64_t inner_group_size;
  double attention_eps, output_eps;
  bool quantize;
};

Rows run(const Layer& layer, const Rows& x, const Tensor& cu_seqlens, const Optional& alibi_slopes,
         const Optional& relative_bias) {
  const std::vector<int64_t>& formats = layer.formats;
  check(formats.size() == 4 * kNumbers, kOp,
        "formats must be 5 numbers of each of 4 linear layers, got ", formats.size());
  check(layer.attention_norm.size() == 4 && layer.output_norm.size() == 4, kOp,
        "norms must be (weight, bias, quant_weight, quant_bias)");
  const Linear qkv = linear_of(layer.qkv, formats, 0, "qkv"),
               out = linear_of(layer.out, formats, 1, "out"),
               up = linear_of(layer.up, formats, 2, "up"),
               down = linear_of(layer.down, formats, 3, "down");
  check(qkv.lowbit() || !x.q, kOp, "q must be None with a dense qkv, got a tensor");
  const int64_t columns = x.floats.size(1);
  check(qkv.numbers[0] == 3 * columns, kOp, "qkv must have ", 3 * columns, " out_features, got ",
        qkv.numbers[0]);
  check(!layer.quantize_up || (out.lowbit() && up.lowbit()), kOp,
        "quantize_up must be False unless out and up are low-bit, got True");
  check(layer.inner_group_size == -1 ||
            (layer.inner_group_size >= 0 && up.lowbit() && down.lowbit() && !layer.glu),
        kOp, "inner_group_size must be -1 unless up and down are low-bit without gates, got ",
        layer.inner_group_size);

  const Rows context{attention_of_rows(multiply(qkv, x, "none"), layer.heads, cu_seqlens,
                                       alibi_slopes, relative_bias),
                     {},
                     {}};
  const Rows middle = multiply_and_normalize(
      out, context, x.floats, {layer.attention_norm, layer.attention_eps}, layer.quantize_up);
  const Rows inner = inner_of(up, middle, layer.activation, layer.glu, layer.inner_group_size);
  return multiply_and_normalize(down, inner, middle.floats, {layer.output_norm, layer.output_eps},
                                layer.quantize);
}

// Layers by the numbers that Python gives them, for as long as its objects live.
class KeptLayers {
 public:
  using Pointer = std::shared_ptr<const Layer>;

  void keep(int64_t number, Layer layer) {
    auto pointer = std::make_shared<const Layer>(std::move(layer));
    std::lock_guard lock(mutex_);
    layers_[number].swap(pointer);  // one of this number is destroyed without the lock
  }
  void forget(int64_t number) {
    Pointer last;  // destroyed without the lock, too
    std::lock_guard lock(mutex_);
    const auto found = layers_.find(number);
    if (found == layers_.end()) return;
    last = std::move(found->second);
    layers_.erase(found);
  }
  std::vector<Pointer> find(const std::vector<int64_t>& numbers) {
    std::vector<Pointer> found;
    found.reserve(numbers.size());
    std::lock_guard lock(mutex_);
    for (int64_t number : numbers) {
      const auto layer = layers_.find(number);
      check(layer != layers_.end(), kOp, "layers must be kept layers, got ", number);
      found.push_back(layer->second);
    }
    return found;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, Pointer> layers_;
};

// Never destroyed: at exit torch may be gone before.
KeptLayers& kept_layers() {
  static KeptLayers& layers = *new KeptLayers;
  return layers;
}

void keep_layer(int64_t number, Tensors qkv, Tensors out, Tensors up, Tensors down,
                std::vector<int64_t> formats, Tensors attention_norm, Tensors output_norm,
                int64_t heads, std::string activation, bool glu, bool quantize_up,
                int64_t inner_group_size, double attention_eps, double output_eps, bool quantize) {
  kept_layers().keep(
      number, {std::move(qkv), std::move(out), std::move(up), std::move(down), std::move(formats),
               std::move(attention_norm), std::move(output_norm), heads, std::move(activation), glu,
               quantize_up, inner_group_size, attention_eps, output_eps, quantize});
}

Tensor encoder_layers(const Tensor& hidden, const Optional& q, const Optional& scale,
                      const Tensor& cu_seqlens, const Optional& alibi_slopes,
                      const Optional& relative_bias, const std::vector<int64_t>& layers) {
  check(hidden.dim() == 2, kOp, "hidden must be (total_tokens, hidden_size), got ",
        shape_of(hidden));
  check(q.has_value() == scale.has_value(), kOp,
        "scale must be given with q and without it not, got one of them");
  check(!layers.empty(), kOp, "layers must be at least one, got none");
  Rows x{hidden, q, scale};
  for (const auto& layer : kept_layers().find(layers))
    x = run(*layer, x, cu_seqlens, alibi_slopes, relative_bias);
  layers_variant.record();
  return std::move(x.floats);
}

}  // namespace

void forget_layer(int64_t number) { kept_layers().forget(number); }

}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("encoder_layers", TORCH_BOX(&taut::encoder_layers));
}

// Whatever the tensors are on: encoder_layers says what it cannot use.
STABLE_TORCH_LIBRARY_IMPL(taut, CompositeExplicitAutograd, m) {
  m.impl("keep_layer", TORCH_BOX(&taut::keep_layer));
}
