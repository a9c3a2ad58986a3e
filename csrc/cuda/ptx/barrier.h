// Named barriers of the block and the register budget of a warpgroup.
#pragma once

namespace taut::ptx {

// bar.sync id, threads (PTX ISA, "bar, barrier"): waits until `threads` threads (a multiple of
// 32) have arrived at barrier `id` (0-15; 0 is __syncthreads). All lanes of a warp call it.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.arrive id, threads (PTX ISA, "bar, barrier"): arrives without waiting.
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// setmaxnreg.{inc,dec}.sync.aligned.u32 (PTX ISA, "setmaxnreg"): registers per thread of this
// warpgroup, a multiple of 8 in 24..256; all its warps run it. The kernel needs
// __launch_bounds__(threads, 1). sm_90a.
template <int registers>
__device__ __forceinline__ void set_max_registers_up() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256,
                "setmaxnreg takes a multiple of 8 in 24..256");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void set_max_registers_down() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256,
                "setmaxnreg takes a multiple of 8 in 24..256");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

}  // namespace taut::ptx
