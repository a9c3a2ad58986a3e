// Twin of csrc/cuda/device.h for g++: CUDA's keywords and the builtins that kernels may use.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/types.h"
#include "runtime.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Constant as long as one thread runs, which is all a kernel can see.
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads() { simt::block_sync(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::warp_sync(mask); }
inline void __threadfence() { simt::thread_fence(); }
inline void __threadfence_block() {}
inline void __trap() { simt::fail("__trap"); }

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  static_assert(sizeof(T) == 4, "the executor shuffles 32-bit values");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = simt::shuffle(simt::Shuffle::index, mask, bits, lane, width);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  static_assert(sizeof(T) == 4, "the executor shuffles 32-bit values");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = simt::shuffle(simt::Shuffle::up, mask, bits, delta, width);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  static_assert(sizeof(T) == 4, "the executor shuffles 32-bit values");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = simt::shuffle(simt::Shuffle::down, mask, bits, delta, width);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  static_assert(sizeof(T) == 4, "the executor shuffles 32-bit values");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = simt::shuffle(simt::Shuffle::exclusive_or, mask, bits, lanes, width);
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate) { return simt::ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate) == mask;
}
inline int __syncthreads_or(int predicate) { return simt::block_sync_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) {
  return simt::block_sync_count(predicate) == int(blockDim.x * blockDim.y * blockDim.z);
}
inline int __syncthreads_count(int predicate) { return simt::block_sync_count(predicate); }

inline int atomicAdd(int* p, int x) { return simt::atomic_add(p, x); }
inline unsigned atomicAdd(unsigned* p, unsigned x) { return simt::atomic_add(p, x); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) {
  return simt::atomic_add(p, x);
}
inline float atomicAdd(float* p, float x) { return simt::atomic_add(p, x); }
inline int atomicMax(int* p, int x) { return simt::atomic_max(p, x); }
inline int atomicMin(int* p, int x) { return simt::atomic_min(p, x); }
inline int atomicExch(int* p, int x) { return simt::atomic_exchange(p, x); }
inline unsigned atomicOr(unsigned* p, unsigned x) { return simt::atomic_or(p, x); }
inline int atomicCAS(int* p, int compare, int x) { return simt::atomic_cas(p, compare, x); }

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (uint64_t{high} << 32 | low) << (shift & 31) >> 32;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (uint64_t{high} << 32 | low) >> (shift & 31);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> 4 * i;
    unsigned byte = bytes >> 8 * (s & 7) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= byte << 8 * i;
  }
  return r;
}
inline float __uint_as_float(unsigned x) {
  float r;
  std::memcpy(&r, &x, 4);
  return r;
}
inline float __int_as_float(int x) { return __uint_as_float(x); }
inline unsigned __float_as_uint(float x) {
  unsigned r;
  std::memcpy(&r, &x, 4);
  return r;
}
inline int __float_as_int(float x) { return __float_as_uint(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __int2float_rn(int x) { return x; }
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += int8_t(a >> i) * int8_t(b >> i);
  return sum;
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

namespace taut {

inline uint8_t* dynamic_shared() { return simt::shared_memory(); }

}  // namespace taut
