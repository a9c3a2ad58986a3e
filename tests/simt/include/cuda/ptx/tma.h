// Twin of csrc/cuda/ptx/tma.h.
#pragma once
#include "cuda/ptx/tensor_map.h"
#include "runtime.h"

namespace taut::ptx {

inline void prefetch_tensor_map(const TensorMap* map) { simt::prefetch_tensor_map(map); }
inline void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  simt::bulk_load(shared, global, bytes, barrier);
}
inline void bulk_store(void* global, const void* shared, uint32_t bytes) {
  simt::bulk_store(global, shared, bytes);
}
template <class... C>
void tensor_load(void* shared, const TensorMap* map, uint64_t* barrier, C... coordinates) {
  static_assert(sizeof...(C) >= 2 && sizeof...(C) <= 4, "tensor copies have 2 to 4 dimensions");
  const int c[] = {coordinates...};
  simt::tensor_load(shared, map, barrier, sizeof...(C), c);
}
template <class... C>
void tensor_store(const TensorMap* map, const void* shared, C... coordinates) {
  static_assert(sizeof...(C) >= 2 && sizeof...(C) <= 4, "tensor copies have 2 to 4 dimensions");
  const int c[] = {coordinates...};
  simt::tensor_store(map, shared, sizeof...(C), c);
}
inline void bulk_commit() { simt::bulk_commit(); }
template <int pending>
void bulk_wait() {
  simt::bulk_wait(pending, false);
}
template <int pending>
void bulk_wait_read() {
  simt::bulk_wait(pending, true);
}

}  // namespace taut::ptx
