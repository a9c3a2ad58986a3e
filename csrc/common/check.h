// Argument checks of the launchers. Messages read "<op>: <argument> must be <expected>, got <what
// came>"; Python turns the RuntimeError that torch makes of them into a ValueError.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "common/types.h"

namespace taut {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The shape of a tensor as Python writes it; formatted only where it is printed.
struct ShapeOf {
  const Tensor& tensor;
};
inline ShapeOf shape_of(const Tensor& t) { return {t}; }
inline std::ostream& operator<<(std::ostream& out, ShapeOf shape) {
  const Tensor& t = shape.tensor;
  out << '(';
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  return out << (t.dim() == 1 ? ",)" : ")");
}

// As torch prints it, without "torch.".
inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    default: return torch::headeronly::toString(dtype);
  }
}

// Throws "<op>: <parts...>" unless `ok`. The parts are only formatted on failure.
template <class... Parts>
inline void check(bool ok, const char* op, const Parts&... parts) {
  if (__builtin_expect(ok, 1)) return;
  std::ostringstream out;
  out << op << ": ";
  (out << ... << parts);
  throw std::runtime_error(out.str());
}

inline FloatType float_type(ScalarType dtype, const char* op, const char* name) {
  switch (dtype) {
    case ScalarType::Float: return FloatType::f32;
    case ScalarType::BFloat16: return FloatType::bf16;
    case ScalarType::Half: return FloatType::f16;
    default:
      check(false, op, name, " must be float32, bfloat16 or float16, got ", dtype_name(dtype));
      return FloatType::f32;
  }
}

inline void check_cpu(const Tensor& t, const char* op, const char* name) {
  check(t.is_cpu(), op, name, " must be on the CPU, like the other arguments");
}

inline void check_dtype(const Tensor& t, ScalarType dtype, const char* op, const char* name) {
  if (t.scalar_type() != dtype)
    check(false, op, name, " must be ", dtype_name(dtype), ", got ", dtype_name(t.scalar_type()));
}

// A contiguous vector of `size` elements of type `dtype`.
inline void check_vector(const Tensor& t, int64_t size, ScalarType dtype, const char* op,
                         const char* name) {
  check_cpu(t, op, name);
  if (t.dim() != 1 || t.size(0) != size)
    check(false, op, name, " must have shape (", size, ",), got ", shape_of(t));
  check_dtype(t, dtype, op, name);
  check(t.is_contiguous(), op, name, " must be contiguous");
}

// Whether the last dimension is contiguous, whatever the strides of the others. As in torch, they
// mean nothing where there are no elements: gradients of empty batches are expanded scalars.
inline bool has_contiguous_rows(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.stride(last) == 1 || t.size(last) <= 1 || t.numel() == 0;
}

// A matrix (rows, columns) of type `dtype` whose rows are contiguous, at any stride.
inline void check_rows(const Tensor& t, int64_t rows, int64_t columns, ScalarType dtype,
                       const char* op, const char* name) {
  check_cpu(t, op, name);
  if (t.dim() != 2 || t.size(0) != rows || t.size(1) != columns)
    check(false, op, name, " must have shape (", rows, ", ", columns, "), got ", shape_of(t));
  check_dtype(t, dtype, op, name);
  check(has_contiguous_rows(t), op, name, " must have contiguous rows");
}

// cu_seqlens holds int32 offsets [0, ..., total_tokens], never decreasing.
inline void check_cu_seqlens(const Tensor& cu, int64_t total_tokens, const char* op,
                             const char* name) {
  check_cpu(cu, op, name);
  check(cu.dim() == 1 && cu.size(0) >= 1, op, name, " must be (batch + 1,), got ", shape_of(cu));
  check_dtype(cu, ScalarType::Int, op, name);
  check(cu.is_contiguous(), op, name, " must be contiguous");
  const int32_t* offsets = cu.const_data_ptr<int32_t>();
  const int64_t batch = cu.size(0) - 1;
  check(offsets[0] == 0, op, name, " must start at 0, got ", offsets[0]);
  for (int64_t i = 0; i < batch; ++i)
    check(offsets[i + 1] >= offsets[i], op, name, " must not decrease, got ", offsets[i], " then ",
          offsets[i + 1], " at index ", i + 1);
  check(offsets[batch] <= total_tokens, op, name, " must end within total_tokens = ", total_tokens,
        ", got ", offsets[batch]);
}

}  // namespace taut
