// Twin of csrc/cuda/ptx/cp_async.h.
#pragma once
#include "runtime.h"

namespace taut::ptx {

template <int bytes>
void cp_async(void* shared, const void* global, int source_bytes = bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  simt::copy_async(shared, global, bytes, source_bytes);
}
inline void cp_async_commit() { simt::copy_commit(); }
template <int pending>
void cp_async_wait() {
  simt::copy_wait(pending);
}

}  // namespace taut::ptx
