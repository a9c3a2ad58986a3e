// What matrix products share behind the sums: the choice of the activation.
#pragma once
#include "common/activation.h"
#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {

// Gelu as accurate as a result of type T can show.
template <class T>
struct GeluFor : Gelu {};
template <>
struct GeluFor<bf16> : GeluForBf16 {};

// Calls body(Function{}), where Function::apply is the activation for results of type T.
template <class T, class Body>
inline void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none: return body(Identity{});
    case Activation::relu: return body(Relu{});
    case Activation::gelu: return body(GeluFor<T>{});
    case Activation::gelu_tanh: return body(GeluTanh{});
    case Activation::silu: return body(Silu{});
    case Activation::tanh: return body(Tanh{});
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
