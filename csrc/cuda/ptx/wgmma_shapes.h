// wgmma.mma_async.sync.aligned.m64nNk... (PTX ISA, "wgmma.mma_async"), one function per N, type of
// the accumulators and place of A: in shared memory (ss) or registers (rs). X::types and X::tail
// are the rest of the instruction: see wgmma.h, which kernels include.
#pragma once
#include <cstdint>

namespace taut::ptx {

// The names of the first 4, 8, ... operands: an instruction's accumulators.
#define TAUT_NAMES_4 "%0, %1, %2, %3"
#define TAUT_NAMES_8 \
  TAUT_NAMES_4       \
  ", %4, %5, %6, %7"
#define TAUT_NAMES_16 \
  TAUT_NAMES_8        \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TAUT_NAMES_32                                                           \
  TAUT_NAMES_16                                                                 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30" \
  ", %31"
#define TAUT_NAMES_48                                                           \
  TAUT_NAMES_32                                                                 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46" \
  ", %47"
#define TAUT_NAMES_64                                                           \
  TAUT_NAMES_48                                                                 \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62" \
  ", %63"
#define TAUT_NAMES_96                                                           \
  TAUT_NAMES_64                                                                 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78" \
  ", %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93" \
  ", %94, %95"
#define TAUT_NAMES_128                                                             \
  TAUT_NAMES_96                                                                    \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108"     \
  ", %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121" \
  ", %122, %123, %124, %125, %126, %127"

// The operands themselves: c is "+f" or "+r".
#define TAUT_OPERANDS_4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define TAUT_OPERANDS_8(c, i) TAUT_OPERANDS_4(c, i), TAUT_OPERANDS_4(c, i + 4)
#define TAUT_OPERANDS_16(c, i) TAUT_OPERANDS_8(c, i), TAUT_OPERANDS_8(c, i + 8)
#define TAUT_OPERANDS_32(c, i) TAUT_OPERANDS_16(c, i), TAUT_OPERANDS_16(c, i + 16)
#define TAUT_OPERANDS_48(c, i) TAUT_OPERANDS_32(c, i), TAUT_OPERANDS_16(c, i + 32)
#define TAUT_OPERANDS_64(c, i) TAUT_OPERANDS_32(c, i), TAUT_OPERANDS_32(c, i + 32)
#define TAUT_OPERANDS_96(c, i) TAUT_OPERANDS_64(c, i), TAUT_OPERANDS_32(c, i + 64)
#define TAUT_OPERANDS_128(c, i) TAUT_OPERANDS_64(c, i), TAUT_OPERANDS_64(c, i + 64)

// `size` accumulators of type D; the numbers are size, size + 1, ...: those of the other operands.
#define TAUT_WGMMA_OF(D, c, n, size, n0, n1, n2, n3, n4, n5, n6, n7)                            \
  template <class X>                                                                            \
  __device__ __forceinline__ void wgmma_ss_asm(D(&d)[size], uint64_t a, uint64_t b,             \
                                               bool accumulate) {                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n2                                       \
                 ", 0;\n"                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #n "%" #n3 " {" TAUT_NAMES_##size          \
                 "}, %" #n0 ", %" #n1 ", p%" #n4 ";\n}\n"                                       \
                 : TAUT_OPERANDS_##size(c, 0)                                                   \
                 : "l"(a), "l"(b), "r"(int{accumulate}), "C"(X::types), "C"(X::tail));          \
  }                                                                                             \
  template <class X>                                                                            \
  __device__ __forceinline__ void wgmma_rs_asm(D(&d)[size], const uint32_t (&a)[4], uint64_t b, \
                                               bool accumulate) {                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n5                                       \
                 ", 0;\n"                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #n "%" #n6 " {" TAUT_NAMES_##size          \
                 "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 ", p%" #n7 ";\n}\n"       \
                 : TAUT_OPERANDS_##size(c, 0)                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),    \
                   "C"(X::types), "C"(X::tail));                                                \
  }
#define TAUT_WGMMA(...)                   \
  TAUT_WGMMA_OF(float, "+f", __VA_ARGS__) \
  TAUT_WGMMA_OF(int32_t, "+r", __VA_ARGS__)

TAUT_WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10, 11)
TAUT_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14, 15)
TAUT_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22, 23)
TAUT_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38, 39)
TAUT_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54, 55)
TAUT_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70, 71)
TAUT_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102, 103)
TAUT_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134, 135)

}  // namespace taut::ptx
