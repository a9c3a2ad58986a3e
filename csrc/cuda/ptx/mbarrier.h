// Barriers in shared memory that count arrivals of threads and bytes of bulk copies (PTX ISA,
// "Parallel Synchronization and Communication Instructions: mbarrier"). A barrier is 8 bytes,
// 8-byte aligned. Its phase completes when `count` arrivals and all expected bytes have come; then
// the parity of the current phase flips. The first phase has parity 0. sm_90.
#pragma once
#include <cstdint>

#include "cuda/ptx/address.h"

namespace taut::ptx {

// mbarrier.init.shared::cta.b64
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}

// mbarrier.inval.shared::cta.b64: before the memory is used for anything else.
__device__ __forceinline__ void mbarrier_invalidate(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// mbarrier.arrive.release.cta.shared::cta.b64: one arrival.
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// mbarrier.arrive.expect_tx.release.cta.shared::cta.b64: one arrival, and `bytes` more to wait for.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// mbarrier.try_wait.parity.acquire.cta.shared::cta.b64: whether the phase of this parity is
// complete; may wait a while, and may return false early.
__device__ __forceinline__ bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 complete, [%1], %2;\n"
      "selp.u32 %0, 1, 0, complete;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// Until the phase of this parity is complete.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {}
}

// fence.mbarrier_init.release.cluster (PTX ISA, "membar, fence"): makes mbarrier_init visible to
// bulk copies; a barrier of the block makes it visible to the other threads.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// fence.proxy.async.shared::cta (PTX ISA, "membar, fence"): shared memory written by this thread's
// ordinary stores (stmatrix too) becomes visible to bulk copies and wgmma. Each writing thread runs
// it before the barrier that hands the data over.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace taut::ptx
