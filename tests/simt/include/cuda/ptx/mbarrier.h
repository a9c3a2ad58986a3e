// Twin of csrc/cuda/ptx/mbarrier.h.
#pragma once
#include "runtime.h"

namespace taut::ptx {

inline void mbarrier_init(uint64_t* barrier, uint32_t count) {
  simt::mbarrier_init(barrier, count);
}
inline void mbarrier_invalidate(uint64_t* barrier) { simt::mbarrier_invalidate(barrier); }
inline void mbarrier_arrive(uint64_t* barrier) { simt::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  simt::mbarrier_arrive(barrier, bytes);
}
inline bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  return simt::mbarrier_try_wait(barrier, parity);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {}
}
inline void fence_mbarrier_init() { simt::fence_mbarrier_init(); }
inline void fence_async_shared() { simt::fence_async_shared(); }

}  // namespace taut::ptx
