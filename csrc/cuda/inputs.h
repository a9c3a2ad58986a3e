// Checked tensors as kernels read them, and the copies made of those that they cannot read in
// place.
#pragma once
#include "cuda/tensor.h"

namespace taut {

// Rows are contiguous, `stride` elements apart.
struct MatrixRows {
  const void* data;
  int64_t stride;
};

class Inputs {
 public:
  Inputs(const char* op, int32_t device) : op_(op), device_(device) {}

  MatrixRows rows(const Tensor& t, int64_t rows, int64_t columns, ScalarType dtype,
                  const char* name) {
    check_cuda(t, device_, op_, name);
    if (t.dim() != 2 || t.size(0) != rows || t.size(1) != columns)
      check(false, op_, name, " must have shape (", rows, ", ", columns, "), got ", shape_of(t));
    check_dtype(t, dtype, op_, name);
    if (columns <= 1 || t.stride(1) == 1) return {t.const_data_ptr(), t.stride(0)};
    return {keep(torch::stable::contiguous(t)), columns};
  }
  MatrixRows rows(const std::optional<Tensor>& t, int64_t count, int64_t columns, ScalarType dtype,
                  const char* name) {
    return t ? rows(*t, count, columns, dtype, name) : MatrixRows{nullptr, 0};
  }
  // A matrix without gaps.
  const void* matrix(const std::optional<Tensor>& t, int64_t count, int64_t columns,
                     ScalarType dtype, const char* name) {
    if (!t) return nullptr;
    rows(*t, count, columns, dtype, name);
    return contiguous(*t);
  }
  const void* vector(const std::optional<Tensor>& t, int64_t size, ScalarType dtype,
                     const char* name) {
    if (!t) return nullptr;
    check_cuda(*t, device_, op_, name);
    if (t->dim() != 1 || t->size(0) != size)
      check(false, op_, name, " must have shape (", size, ",), got ", shape_of(*t));
    check_dtype(*t, dtype, op_, name);
    return contiguous(*t);
  }
  const void* contiguous(const Tensor& t) {
    return t.is_contiguous() ? t.const_data_ptr() : keep(torch::stable::contiguous(t));
  }
  // The same from a whole 16 bytes on.
  const void* aligned(const Tensor& t) {
    const void* data = contiguous(t);
    if (reinterpret_cast<uintptr_t>(data) % 16 == 0) return data;
    return keep(torch::stable::clone(torch::stable::contiguous(t)));
  }
  // Keeps what the kernels of this call read until they are launched.
  const void* keep(Tensor copy) {
    copies_.push_back(std::move(copy));
    return copies_.back().const_data_ptr();
  }

 private:
  const char* op_;
  int32_t device_;
  std::vector<Tensor> copies_;
};

}  // namespace taut
