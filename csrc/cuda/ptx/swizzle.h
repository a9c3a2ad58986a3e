// The permutation of 16-byte chunks that keeps tiles free of bank conflicts. No assembly: the same
// file serves the executor.
#pragma once
#include <cstdint>

#include "cuda/device.h"

namespace taut::ptx {

// The 128-byte swizzle of TMA and wgmma (PTX ISA, "Swizzling modes"): in rows of 128 bytes, aligned
// to 1024, chunk c of row r lies at chunk c ^ (r % 8). Takes and returns a byte offset.
__host__ __device__ constexpr uint32_t swizzle_128(uint32_t offset) {
  return offset ^ (offset >> 3 & 0x70);
}

// The 64-byte swizzle: in rows of 64 bytes, aligned to 512, chunk c of row r lies at chunk
// c ^ (r / 2 % 4).
__host__ __device__ constexpr uint32_t swizzle_64(uint32_t offset) {
  return offset ^ (offset >> 3 & 0x30);
}

}  // namespace taut::ptx
