// Small conveniences over the stable ABI that every CPU launcher uses.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <vector>

#include "common/check.h"
#include "common/types.h"

namespace taut {

// An uninitialised contiguous CPU tensor. Straight through the shim: stable::empty looks the op up
// by name in the dispatcher, which costs more than the allocation.
inline Tensor empty_cpu(const int64_t* sizes, int64_t dim, ScalarType dtype) {
  constexpr int64_t kMostDimensions = 64;
  int64_t strides[kMostDimensions];
  if (dim > kMostDimensions) throw std::runtime_error("tensors must have at most 64 dimensions");
  int64_t stride = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}
inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty_cpu(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

// Zero bits are zero in every dtype.
inline void fill_zero(const Tensor& t) {
  if (const int64_t elements = t.numel())
    std::memset(t.mutable_data_ptr(), 0, static_cast<size_t>(elements) * t.element_size());
}

template <class T = void>
inline const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

inline float* floats_of(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

inline int64_t row_stride_or_0(const std::optional<Tensor>& t) { return t ? t->stride(0) : 0; }

// How many rows are worth a task of their own: starting one costs as much as some 32768 elements.
inline int64_t rows_per_task(int64_t columns) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, columns));
}

// body(begin, end) over all rows, in parallel where there are enough of them; a thread gets one run
// of rows.
template <class Body>
inline void parallel_rows(int64_t rows, int64_t columns, const Body& body) {
  const int64_t grain = rows_per_task(columns);
  if (rows > grain) {
    torch::stable::parallel_for(0, rows, grain, body);
  } else if (rows > 0) {
    body(0, rows);
  }
}

// Runs body(task, worker) for every task in [0, tasks), the next free worker taking the next task:
// for tasks of unequal cost. worker < threads; every task must write memory of its own.
template <class Body>
inline void run_tasks(int64_t tasks, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      body(task, worker);
  };
  const int64_t workers = std::min(threads, tasks);
  if (workers <= 1) return work(0);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) { work(worker); });
}

// The same on all of torch's threads; body(task).
template <class Body>
inline void parallel_tasks(int64_t tasks, const Body& body) {
  run_tasks(tasks, torch::stable::get_num_threads(), [&](int64_t task, int64_t) { body(task); });
}

// The kernel for a tensor `name` of type `dtype`.
template <class Kernel>
inline Kernel* float_kernel(ScalarType dtype, const char* op, const char* name, Kernel* f32,
                            Kernel* bf16, Kernel* f16) {
  switch (dtype) {
    case ScalarType::Float: return f32;
    case ScalarType::BFloat16: return bf16;
    case ScalarType::Half: return f16;
    default:
      check(false, op, name, " must be float32, bfloat16, float16, got ", dtype_name(dtype));
      return nullptr;
  }
}

// Calls body with a value of the storage type of `dtype`: float, bf16 or f16.
template <class Body>
inline void with_float_type(ScalarType dtype, const char* op, const char* name, const Body& body) {
  switch (dtype) {
    case ScalarType::Float: return body(float{});
    case ScalarType::BFloat16: return body(bf16{});
    case ScalarType::Half: return body(f16{});
    default: check(false, op, name, " must be float32, bfloat16, float16, got ", dtype_name(dtype));
  }
}

}  // namespace taut
