// Asynchronous matrix products of a warpgroup, D (64 x N) = A (64 x K) * B (K x N) [+ D] (PTX ISA,
// "Asynchronous Warpgroup Level Matrix Instructions"). K is 32 bytes of elements. A comes from
// shared memory (ss) or registers (rs), B from shared memory. With w = warp % 4, g = lane / 4 and
// t = lane % 4, accumulator d[i] is row 16 w + g + 8 * (i / 2 % 2), column 8 * (i / 4) + 2 t + i %
// 2; A in registers is as for mma.h, rows 16 w + ... All 128 threads of the warpgroup take part,
// and the registers of a product belong to it from wgmma_fence until wgmma_wait. sm_90a.
#pragma once
#include <cstdint>

#include "common/types.h"
#include "cuda/ptx/wgmma_descriptor.h"
#include "cuda/ptx/wgmma_shapes.h"

namespace taut::ptx {

// The rest of the instruction per element type: its types, and the immediates that follow the
// predicate: 16-bit types have two signs and the majors, e4m3 two signs, integers none.
template <class T>
struct WgmmaTypes;
template <>
struct WgmmaTypes<bf16> {
  static constexpr char types[] = "k16.f32.bf16.bf16";
  static constexpr int immediates = 4;
};
template <>
struct WgmmaTypes<f16> {
  static constexpr char types[] = "k16.f32.f16.f16";
  static constexpr int immediates = 4;
};
template <>
struct WgmmaTypes<e4m3> {
  static constexpr char types[] = "k32.f32.e4m3.e4m3";
  static constexpr int immediates = 2;
};
template <>
struct WgmmaTypes<int8_t> {
  static constexpr char types[] = "k32.s32.s8.s8";
  static constexpr int immediates = 0;
};
template <>
struct WgmmaTypes<b1> {
  static constexpr char types[] = "k256.s32.b1.b1.and.popc";
  static constexpr int immediates = 0;
};

// `c` where the instruction has that immediate, else a blank.
constexpr char immediate_char(bool present, char c) { return present ? c : ' '; }
constexpr char major_digit(Major major) { return major == Major::mn ? '1' : '0'; }

template <class T, Major a, Major b>
struct WgmmaSharedA : WgmmaTypes<T> {
  static constexpr bool signs = WgmmaTypes<T>::immediates >= 2;
  static constexpr bool majors = WgmmaTypes<T>::immediates == 4;
  static_assert(majors || (a == Major::k && b == Major::k),
                "wgmma takes operands along MN for 16-bit elements only");
  static constexpr char tail[] = {immediate_char(signs, ','),
                                  immediate_char(signs, '1'),
                                  immediate_char(signs, ','),
                                  immediate_char(signs, '1'),
                                  immediate_char(majors, ','),
                                  immediate_char(majors, major_digit(a)),
                                  immediate_char(majors, ','),
                                  immediate_char(majors, major_digit(b)),
                                  '\0'};
};

template <class T, Major b>
struct WgmmaRegisterA : WgmmaTypes<T> {
  static constexpr bool signs = WgmmaTypes<T>::immediates >= 2;
  static constexpr bool majors = WgmmaTypes<T>::immediates == 4;
  static_assert(majors || b == Major::k, "wgmma takes operands along MN for 16-bit elements only");
  static constexpr char tail[] = {immediate_char(signs, ','),
                                  immediate_char(signs, '1'),
                                  immediate_char(signs, ','),
                                  immediate_char(signs, '1'),
                                  immediate_char(majors, ','),
                                  immediate_char(majors, major_digit(b)),
                                  '\0'};
};

// wgmma.mma_async.sync.aligned.m64n{N}k{16,32,256} with both operands in shared memory. N is twice
// the length of d: 8, 16, 32, 64, 96, 128, 192 or 256. d is float for bf16, f16 and e4m3, int32_t
// for int8_t and b1; it is overwritten when `accumulate` is false.
template <class T, Major a_major = Major::k, Major b_major = Major::k, class D, int size>
__device__ __forceinline__ void wgmma_ss(D (&d)[size], uint64_t a, uint64_t b, bool accumulate) {
  wgmma_ss_asm<WgmmaSharedA<T, a_major, b_major>>(d, a, b, accumulate);
}

// The same with A in registers.
template <class T, Major b_major = Major::k, class D, int size>
__device__ __forceinline__ void wgmma_rs(D (&d)[size], const uint32_t (&a)[4], uint64_t b,
                                         bool accumulate) {
  wgmma_rs_asm<WgmmaRegisterA<T, b_major>>(d, a, b, accumulate);
}

// wgmma.fence.sync.aligned (PTX ISA, "wgmma.fence"): before the first product, and whenever
// registers of a product (d, or a in registers) were touched by anything else since.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// wgmma.commit_group.sync.aligned (PTX ISA, "wgmma.commit_group"): the products since the last
// commit become one group.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// wgmma.wait_group.sync.aligned (PTX ISA, "wgmma.wait_group"): until at most `pending` of the most
// recent groups are under way.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// No instruction: the compiler moves no use of these registers across this place. Products are
// asynchronous to it only by name, so d goes through this after the wgmma_wait that completes it,
// and registers that were written go through it before wgmma_fence. Without it ptxas may have to
// put in waits of its own (notes C7517, C7519 in bench/results/cuda_kernels.md).
template <int size>
__device__ __forceinline__ void hold_registers(float (&d)[size]) {
#pragma unroll
  for (int i = 0; i < size; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <class T, int size>
__device__ __forceinline__ void hold_registers(T (&d)[size]) {
  static_assert(sizeof(T) == 4, "registers have 32 bits");
#pragma unroll
  for (int i = 0; i < size; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

}  // namespace taut::ptx
