// Where the operands of wgmma lie in shared memory. No assembly: the same file serves the executor.
#pragma once
#include <cstdint>

#include "cuda/device.h"
#include "cuda/ptx/address.h"

namespace taut::ptx {

// Element types that C++ has no name for: 8-bit float and single bit (products are AND, popcount).
struct e4m3;
struct b1;

// Which dimension of an operand is contiguous in shared memory: K, or the rows of A and columns of
// B. Only 16-bit elements may lie along MN.
enum class Major { k, mn };

enum class Swizzle : uint64_t { none = 0, bytes_128 = 1, bytes_64 = 2, bytes_32 = 3 };

// The 64-bit matrix descriptor (PTX ISA, "Matrix Descriptor Format"): bits 0-13 start address / 16,
// 16-29 leading byte offset / 16, 32-45 stride byte offset / 16, 62-63 swizzle.
// Swizzled layouts consist of atoms of 8 rows of 128 (64, 32) bytes whose 16-byte chunks are
// permuted by chunk ^= row (see swizzle_128): along K, `stride` leads from 8 rows of M or N to the
// next 8 and `leading` is unused; along MN, `stride` leads from 8 values of k to the next 8 and
// `leading` from one 128-byte (64, 32) run of M or N to the next. Atoms are aligned to their size;
// within an atom along K, the next 32 bytes of k begin 32 bytes further.
// Without swizzle, 8 rows of 16 bytes are contiguous: along K, `leading` leads to the next 16 bytes
// of k and `stride` to the next 8 rows; along MN, `leading` leads to the next 8 k and `stride` to
// the next 8 elements of M or N.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* shared, uint32_t leading,
                                                      uint32_t stride, Swizzle swizzle) {
  return uint64_t{(shared_address(shared) & 0x3FFFF) >> 4} | uint64_t{leading >> 4} << 16 |
         uint64_t{stride >> 4} << 32 | static_cast<uint64_t>(swizzle) << 62;
}

// The operand that begins `bytes` later, a multiple of 16.
__device__ __forceinline__ uint64_t descriptor_after(uint64_t descriptor, uint32_t bytes) {
  return (descriptor & ~uint64_t{0xFFFFFFFF}) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

}  // namespace taut::ptx
