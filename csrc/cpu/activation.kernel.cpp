// bias + activation and bias + gated unit over rows, and their gradients.
#include "cpu/activation.h"

#include "cpu/column_sums.h"
#include "cpu/isa/columns.h"

namespace taut {
namespace TAUT_ISA {
namespace {

// Calls body with a value of the type (isa/math.h) that `activation` names.
template <class Body>
inline void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none: return body(Identity{});
    case Activation::relu: return body(Relu{});
    case Activation::gelu: return body(Gelu{});
    case Activation::gelu_tanh: return body(GeluTanh{});
    case Activation::silu: return body(Silu{});
    case Activation::tanh: return body(Tanh{});
  }
}

template <class T>
inline Vec load_biased(const T* x, const T* bias, int64_t c, int n) {
  const Vec v = load(x + c, n);
  return bias ? v + load(bias + c, n) : v;
}

inline void add_to_sum(float* sums, int64_t c, int n, Vec v) {
  if (sums) store(load(sums + c, n) + v, sums + c, n);
}

template <class T, class Act>
void activate(const ActivationParams& p, int64_t begin, int64_t end) {
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    T* out = static_cast<T*>(p.out) + r * p.columns;
    for_columns(p.columns, [&](int64_t c, int n) {
      store(Act::apply(load_biased(x, bias, c, n)), out + c, n);
    });
  }
}

template <class T, class Act>
void activate_gated(const ActivationParams& p, int64_t begin, int64_t end) {
  const int64_t half = p.columns / 2;
  const T* bias = static_cast<const T*>(p.bias);
  const T* gate_bias = bias ? bias + half : nullptr;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    T* out = static_cast<T*>(p.out) + r * half;
    for_columns(half, [&](int64_t c, int n) {
      const Vec gate = load_biased(x + half, gate_bias, c, n);
      store(Act::apply(load_biased(x, bias, c, n)) * gate, out + c, n);
    });
  }
}

template <class T, class Act>
void activate_backward(const ActivationBackwardParams& p, float* sums, int64_t begin, int64_t end) {
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    const T* grad = static_cast<const T*>(p.grad_out) + r * p.grad_out_stride;
    T* dx = static_cast<T*>(p.dx) + r * p.columns;
    for_columns(p.columns, [&](int64_t c, int n) {
      const Vec v = load(grad + c, n) * Act::derivative(load_biased(x, bias, c, n));
      add_to_sum(sums, c, n, v);
      store(v, dx + c, n);
    });
  }
}

template <class T, class Act>
void activate_gated_backward(const ActivationBackwardParams& p, float* sums, int64_t begin,
                             int64_t end) {
  const int64_t half = p.columns / 2;
  const T* bias = static_cast<const T*>(p.bias);
  const T* gate_bias = bias ? bias + half : nullptr;
  float* gate_sums = sums ? sums + half : nullptr;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    const T* grad = static_cast<const T*>(p.grad_out) + r * p.grad_out_stride;
    T* dx = static_cast<T*>(p.dx) + r * p.columns;
    for_columns(half, [&](int64_t c, int n) {
      const Vec g = load(grad + c, n);
      const Vec inner = load_biased(x, bias, c, n);
      const Vec gate = load_biased(x + half, gate_bias, c, n);
      const Vec dinner = g * gate * Act::derivative(inner);
      const Vec dgate = g * Act::apply(inner);
      add_to_sum(sums, c, n, dinner);
      add_to_sum(gate_sums, c, n, dgate);
      store(dinner, dx + c, n);
      store(dgate, dx + half + c, n);
    });
  }
}

template <class T>
void activation_rows(const ActivationParams& p, int64_t begin, int64_t end) {
  with_activation(p.activation, [&](auto act) {
    using Act = decltype(act);
    p.gated ? activate_gated<T, Act>(p, begin, end) : activate<T, Act>(p, begin, end);
  });
}

template <class T>
void activation_backward_block(const ActivationBackwardParams& p, int64_t block) {
  float* sums = p.partials ? p.partials + block * p.columns : nullptr;
  if (sums) std::memset(sums, 0, static_cast<size_t>(p.columns) * sizeof(float));
  const int64_t begin = block * kSumRows;
  const int64_t end = begin + kSumRows < p.rows ? begin + kSumRows : p.rows;
  with_activation(p.activation, [&](auto act) {
    using Act = decltype(act);
    p.gated ? activate_gated_backward<T, Act>(p, sums, begin, end)
            : activate_backward<T, Act>(p, sums, begin, end);
  });
}

}  // namespace

void activation_rows_f32(const ActivationParams& p, int64_t begin, int64_t end) {
  activation_rows<float>(p, begin, end);
}
void activation_rows_bf16(const ActivationParams& p, int64_t begin, int64_t end) {
  activation_rows<bf16>(p, begin, end);
}
void activation_rows_f16(const ActivationParams& p, int64_t begin, int64_t end) {
  activation_rows<f16>(p, begin, end);
}

void activation_backward_block_f32(const ActivationBackwardParams& p, int64_t block) {
  activation_backward_block<float>(p, block);
}
void activation_backward_block_bf16(const ActivationBackwardParams& p, int64_t block) {
  activation_backward_block<bf16>(p, block);
}
void activation_backward_block_f16(const ActivationBackwardParams& p, int64_t block) {
  activation_backward_block<f16>(p, block);
}

}  // namespace TAUT_ISA
}  // namespace taut
