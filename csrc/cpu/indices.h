// For launchers: int32 or int64 vectors of row numbers.
#pragma once
#include "cpu/tensor.h"

namespace taut {

// Calls body(pointer to int32 or int64 elements, stride).
template <class Body>
inline void with_indices(const Tensor& t, const Body& body) {
  if (t.scalar_type() == ScalarType::Long)
    body(static_cast<const int64_t*>(t.const_data_ptr()), t.stride(0));
  else
    body(static_cast<const int32_t*>(t.const_data_ptr()), t.stride(0));
}

// An int32 or int64 vector of `size` elements, at any stride, all in [0, rows).
inline void check_indices(const Tensor& t, int64_t size, int64_t rows, const char* op,
                          const char* name) {
  check_cpu(t, op, name);
  if (t.dim() != 1 || t.size(0) != size)
    check(false, op, name, " must have shape (", size, ",), got ", shape_of(t));
  const ScalarType dtype = t.scalar_type();
  if (dtype != ScalarType::Int && dtype != ScalarType::Long)
    check(false, op, name, " must be int32, int64, got ", dtype_name(dtype));
  with_indices(t, [&](const auto* indices, int64_t stride) {
    for (int64_t i = 0; i < size; ++i) {
      const int64_t index = indices[i * stride];
      // A negative index is a huge unsigned one.
      if (__builtin_expect(static_cast<uint64_t>(index) >= static_cast<uint64_t>(rows), 0))
        check(false, op, name, " must be in [0, ", rows, "), got ", index, " at index ", i);
    }
  });
}

}  // namespace taut
