// Activation functions by the names transformers uses; the codes cross from launcher to kernel.
#pragma once
#include <stdexcept>
#include <string>

namespace taut {

enum class Activation : int { none, relu, gelu, gelu_tanh, silu, tanh };

inline Activation parse_activation(const std::string& name, const char* op) {
  constexpr const char* kNames[] = {"none", "relu", "gelu", "gelu_tanh", "silu", "tanh"};
  for (int i = 0; i < 6; ++i)
    if (name == kNames[i]) return static_cast<Activation>(i);
  throw std::runtime_error(std::string(op) +
                           ": activation must be one of none, relu, gelu, gelu_tanh, silu, tanh, "
                           "got " +
                           name);
}

}  // namespace taut
