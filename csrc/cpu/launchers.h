// Launchers that encoder_layers composes. Their arguments are those of the op of the same name.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "cpu/tensor.h"

namespace taut {

Tensor bias_glu(const Tensor& x, const std::optional<Tensor>& bias, const std::string& activation);

std::tuple<Tensor, Tensor> quantize_per_token(const Tensor& x,
                                              const std::optional<Tensor>& channel_scale,
                                              const std::optional<Tensor>& channel_shift,
                                              int64_t bits, const std::string& grid, bool hadamard,
                                              int64_t group_size);

Tensor packed_linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                     int64_t out_features, const std::string& activation);

Tensor packed_linear_layer_norm(const Tensor& x, const Tensor& packed,
                                const std::optional<Tensor>& bias, const Tensor& residual,
                                const std::optional<Tensor>& weight,
                                const std::optional<Tensor>& norm_bias, double eps);

Tensor lowbit_linear(const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
                     const Tensor& scale, const std::optional<Tensor>& zero_point,
                     const std::optional<Tensor>& codebook, const std::optional<Tensor>& bias,
                     int64_t out_features, int64_t bits, int64_t group_size, int64_t x_bits,
                     const std::string& epilogue, const std::optional<Tensor>& residual,
                     double x_zero_point, std::optional<ScalarType> out_dtype);

std::tuple<Tensor, Tensor> lowbit_linear_quantize(
    const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
    const Tensor& scale, const std::optional<Tensor>& zero_point,
    const std::optional<Tensor>& codebook, const std::optional<Tensor>& bias, int64_t out_features,
    int64_t bits, int64_t group_size, int64_t x_bits, const std::string& epilogue, int64_t out_bits,
    int64_t out_group_size);

std::tuple<Tensor, Tensor, Tensor> lowbit_linear_layer_norm(
    const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
    const Tensor& scale, const std::optional<Tensor>& zero_point,
    const std::optional<Tensor>& codebook, const std::optional<Tensor>& bias, int64_t out_features,
    int64_t bits, int64_t group_size, int64_t x_bits, const Tensor& residual,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps,
    bool quantize, const std::optional<Tensor>& quant_weight,
    const std::optional<Tensor>& quant_bias);

// varlen_attention_qkvpacked from and to whole rows: qkv (total, 3 * heads * head_dim), contiguous,
// gives (total, heads * head_dim).
Tensor attention_of_rows(const Tensor& qkv, int64_t heads, const Tensor& cu_seqlens,
                         const std::optional<Tensor>& alibi_slopes,
                         const std::optional<Tensor>& relative_bias);

}  // namespace taut
