// Arguments that native kernels do not serve go on to Triton's kernel of the same op.
#pragma once
#include "cuda/tensor.h"
#include "cuda/variants.h"

namespace taut {

using Boxed = void(StableIValue*, uint64_t, uint64_t);

// What launchers ask about the tensors of a call. They leave the stack as it is.
inline bool is_half(const StableIValue* stack, int index) {
  int32_t dtype = 0;
  const auto tensor = torch::stable::detail::to<AtenTensorHandle>(stack[index]);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  return dtype == aoti_torch_dtype_bfloat16() || dtype == aoti_torch_dtype_float16();
}
// Of the first tensor's device; 0 where that is no GPU.
inline int capability_of(const StableIValue* stack) {
  const auto tensor = torch::stable::detail::to<AtenTensorHandle>(stack[0]);
  int32_t device_type = 0, device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device));
  return device_type == aoti_torch_device_type_cuda() ? compute_capability(device) : 0;
}

inline bool is_on_sm80(const StableIValue* stack) { return capability_of(stack) >= 80; }
inline bool is_half_on_sm80(const StableIValue* stack) {
  return is_half(stack, 0) && is_on_sm80(stack);
}
// Whether the device multiplies single bits: later ones emulate that.
inline bool has_bit_products(const StableIValue* stack) {
  const int capability = capability_of(stack);
  return capability >= 80 && capability < 100;
}

// `native` where it `serves` the call, or else the op of this name in namespace taut_triton (see
// registry.py).
template <Boxed* native, bool (*serves)(const StableIValue*) = is_half_on_sm80>
inline void native_or_triton(const char* op, StableIValue* stack, uint64_t inputs,
                             uint64_t outputs) {
  if (serves(stack)) return native(stack, inputs, outputs);
  const std::string name = std::string("taut_triton::") + op;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION));
  record_variant(op, "triton");
}

}  // namespace taut
