// Bulk copies by the copy engine (PTX ISA, "Data Movement and Conversion Instructions: Bulk copy",
// "Tensor copy"). One thread issues a copy. Loads report their bytes to an mbarrier; stores are
// waited for in groups of the issuing thread. Shared addresses are 128-byte aligned (1024 for the
// pattern of the 128-byte swizzle to start at row 0). Coordinates go from the innermost dimension
// out; elements out of the tensor load as zeros and count as bytes, and are not stored. sm_90.
#pragma once
#include <cstdint>

#include "cuda/ptx/address.h"
#include "cuda/ptx/tensor_map.h"

namespace taut::ptx {

// prefetch.tensormap (PTX ISA, "prefetch, prefetchu")
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes (PTX ISA, "cp.async.bulk"):
// `bytes` and both addresses are multiples of 16.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// cp.async.bulk.global.shared::cta.bulk_group (PTX ISA, "cp.async.bulk")
__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

// cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes (PTX ISA,
// "cp.async.bulk.tensor"); 3d and 4d alike.
__device__ __forceinline__ void tensor_load(void* shared, const TensorMap* map, uint64_t* barrier,
                                            int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void tensor_load(void* shared, const TensorMap* map, uint64_t* barrier,
                                            int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void tensor_load(void* shared, const TensorMap* map, uint64_t* barrier,
                                            int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group (PTX ISA, "cp.async.bulk.tensor");
// 3d and 4d alike.
__device__ __forceinline__ void tensor_store(const TensorMap* map, const void* shared, int c0,
                                             int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(shared_address(shared)), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void tensor_store(const TensorMap* map, const void* shared, int c0,
                                             int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
          map),
      "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void tensor_store(const TensorMap* map, const void* shared, int c0,
                                             int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
          "l"(map),
      "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// cp.async.bulk.commit_group (PTX ISA, "cp.async.bulk.commit_group"): this thread's bulk stores
// since the last commit become one group.
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// cp.async.bulk.wait_group (PTX ISA, "cp.async.bulk.wait_group"): until at most `pending` of this
// thread's most recent groups are under way.
template <int pending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

// cp.async.bulk.wait_group.read: until they have read their shared memory, which may be reused.
template <int pending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

}  // namespace taut::ptx
