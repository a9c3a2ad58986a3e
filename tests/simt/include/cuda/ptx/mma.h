// Twin of csrc/cuda/ptx/mma.h.
#pragma once
#include <type_traits>

#include "common/types.h"
#include "runtime.h"

namespace taut::ptx {

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const float (&c)[4]) {
  constexpr simt::Element kElement =
      std::is_same_v<T, bf16> ? simt::Element::bf16 : simt::Element::f16;
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  simt::mma(kElement, 16, d, a, b);
}
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k16<T>(d, a, b, d);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma(simt::Element::tf32, 8, d, a, b);
}
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma(simt::Element::s8, 32, d, a, b);
}
inline void mma_m16n8k128_and(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  simt::mma(simt::Element::b1_and, 128, d, a, &b);
}
inline void mma_m16n8k128_and(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b,
                              const int32_t (&c)[4]) {
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  simt::mma(simt::Element::b1_and, 128, d, a, &b);
}
inline bool has_native_xor() { return simt::architecture() < 900; }
inline void mma_m16n8k128_xor(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  simt::mma(simt::Element::b1_xor, 128, d, a, &b);
}
inline void mma_m16n8k256_and(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma(simt::Element::b1_and, 256, d, a, b);
}
inline void mma_m16n8k256_xor(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma(simt::Element::b1_xor, 256, d, a, b);
}

}  // namespace taut::ptx
