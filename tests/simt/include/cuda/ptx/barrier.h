// Twin of csrc/cuda/ptx/barrier.h.
#pragma once
#include "runtime.h"

namespace taut::ptx {

inline void barrier_sync(int id, int threads) { simt::barrier_sync(id, threads); }
inline void barrier_arrive(int id, int threads) { simt::barrier_arrive(id, threads); }
template <int registers>
void set_max_registers_up() {
  simt::set_max_registers(registers, true);
}
template <int registers>
void set_max_registers_down() {
  simt::set_max_registers(registers, false);
}

}  // namespace taut::ptx
