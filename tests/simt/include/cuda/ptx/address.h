// Twin of csrc/cuda/ptx/address.h.
#pragma once
#include "runtime.h"

namespace taut::ptx {

inline uint32_t shared_address(const void* pointer) { return simt::shared_address(pointer); }

}  // namespace taut::ptx
