// What the launchers of packed signs on CUDA share.
#pragma once
#include "cuda/attention_arguments.h"
#include "cuda/binary_gemm_params.h"
#include "cuda/fallback.h"

namespace taut {

struct GridLaunch {
  int32_t device;
  cudaStream_t stream;

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int threads, int shared_bytes,
                  int64_t blocks, const Params& params) const {
    check(blocks < int64_t{1} << 31, name, " must have fewer than 2^31 blocks, got ", blocks);
    if (blocks == 0) return;
    // Also lets the kernel have its shared memory.
    resident_blocks(reinterpret_cast<const void*>(kernel), threads, shared_bytes, device);
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params);
    check_cuda_call(cudaGetLastError(), name);
  }
};

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

template <class T>
inline const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// A contiguous tensor of this shape.
inline void check_contiguous(const Tensor& t, std::initializer_list<int64_t> shape,
                             ScalarType dtype, int32_t device, const char* op, const char* name) {
  check_cuda(t, device, op, name);
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; fits && i < t.dim(); ++i) fits = t.size(i) == shape.begin()[i];
  if (!fits) {
    std::ostringstream wanted;
    for (int64_t size : shape) wanted << size << ", ";
    check(false, op, name, " must be (", wanted.str(), "), got ", shape_of(t));
  }
  check_dtype(t, dtype, op, name);
  check(t.is_contiguous(), op, name, " must be contiguous");
}

}  // namespace taut
