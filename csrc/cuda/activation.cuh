// Activations by the names transformers uses, in fp32.
#pragma once
#include "common/activation.h"
#include "cuda/device.h"

namespace taut {

__device__ __forceinline__ float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return x < 0.0f ? 0.0f : x;  // NaN stays NaN
    case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Activation::gelu_tanh:  // 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
      return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x)));
    case Activation::silu: return x / (1.0f + expf(-x));
    case Activation::tanh: return tanhf(x);
  }
  return x;
}

}  // namespace taut
