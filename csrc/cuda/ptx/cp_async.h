// Copies from global to shared memory that pass no register (PTX ISA, "Data Movement and
// Conversion Instructions: Non-bulk copy"). A thread sees its own copies after cp_async_wait;
// other threads after a barrier behind that. sm_80.
#pragma once
#include <cstdint>

#include "cuda/ptx/address.h"

namespace taut::ptx {

// cp.async.{ca,cg}.shared.global [shared], [global], bytes, source_bytes (PTX ISA, "cp.async"):
// copies `source_bytes` (0 to bytes) and fills the rest of the `bytes` (4, 8 or 16) with zeros.
// Both addresses are aligned to `bytes`; the global one is not read when source_bytes is 0. 16
// bytes bypass L1 (.cg).
template <int bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global,
                                         int source_bytes = bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "n"(bytes), "r"(source_bytes)
                 : "memory");
  }
}

// cp.async.commit_group (PTX ISA, "cp.async.commit_group"): this thread's copies since the last
// commit become one group.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group (PTX ISA, "cp.async.wait_group"): until at most `pending` of this thread's
// most recent groups are still under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace taut::ptx
