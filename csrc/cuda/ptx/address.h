// Addresses as instructions take them.
#pragma once
#include <cstdint>

namespace taut::ptx {

// cvta.to.shared.u64 (PTX ISA, "cvta"): the 32-bit shared-memory address of a pointer.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace taut::ptx
