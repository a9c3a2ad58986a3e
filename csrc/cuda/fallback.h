// Arguments that native kernels do not serve go on to Triton's kernel of the same op.
#pragma once
#include "cuda/tensor.h"
#include "cuda/variants.h"

namespace taut {

using Boxed = void(StableIValue*, uint64_t, uint64_t);

// Whether the stack's first tensor is fp16 or bf16 on sm_80 or newer. Leaves the stack as it is.
inline bool is_half_on_sm80(const StableIValue* stack) {
  const auto tensor = torch::stable::detail::to<AtenTensorHandle>(stack[0]);
  int32_t dtype = 0, device_type = 0, device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device));
  return (dtype == aoti_torch_dtype_bfloat16() || dtype == aoti_torch_dtype_float16()) &&
         device_type == aoti_torch_device_type_cuda() && compute_capability(device) >= 80;
}

// `native`, or the op of this name in namespace taut_triton (see registry.py).
template <Boxed* native>
inline void native_or_triton(const char* op, StableIValue* stack, uint64_t inputs,
                             uint64_t outputs) {
  if (is_half_on_sm80(stack)) return native(stack, inputs, outputs);
  const std::string name = std::string("taut_triton::") + op;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION));
  record_variant(op, "triton");
}

}  // namespace taut
