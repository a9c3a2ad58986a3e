// Arguments that native kernels do not serve go on to Triton's kernel of the same op.
#pragma once
#include "cuda/tensor.h"
#include "cuda/variants.h"

namespace taut {

using Boxed = void(StableIValue*, uint64_t, uint64_t);

// What decides who serves a call: its first tensor, as it lies on the stack, which stays as it is.
struct FirstTensor {
  AtenTensorHandle handle;
  int32_t dtype = 0, device_type = 0, device = 0;

  explicit FirstTensor(const StableIValue* stack)
      : handle(torch::stable::detail::to<AtenTensorHandle>(stack[0])) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device));
  }
  bool is_on_sm80() const {
    return device_type == aoti_torch_device_type_cuda() && compute_capability(device) >= 80;
  }
  bool is_half() const {
    return dtype == aoti_torch_dtype_bfloat16() || dtype == aoti_torch_dtype_float16();
  }
  bool is_int8() const { return dtype == aoti_torch_dtype_int8(); }
  // Columns of a matrix; 0 of anything else.
  int64_t columns() const {
    int64_t dimensions = 0, columns = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dimensions));
    if (dimensions == 2) TORCH_ERROR_CODE_CHECK(aoti_torch_get_size(handle, 1, &columns));
    return columns;
  }
};

// An optional dtype as it lies on the stack, which stays as it is.
inline std::optional<ScalarType> optional_dtype(const StableIValue* stack) {
  const auto* dtype = torch::stable::detail::to<const StableIValue*>(stack[0]);
  if (dtype == nullptr) return std::nullopt;
  return torch::stable::detail::to<ScalarType>(*dtype);
}

// The op of this name in namespace taut_triton (see registry.py).
inline void call_triton(const char* op, StableIValue* stack) {
  const std::string name = std::string("taut_triton::") + op;
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION));
  record_variant(op, "triton");
}

// `native` for fp16 and bf16 on sm_80 and newer.
template <Boxed* native>
inline void native_or_triton(const char* op, StableIValue* stack, uint64_t inputs,
                             uint64_t outputs) {
  const FirstTensor first(stack);
  if (first.is_half() && first.is_on_sm80()) return native(stack, inputs, outputs);
  call_triton(op, stack);
}

}  // namespace taut
