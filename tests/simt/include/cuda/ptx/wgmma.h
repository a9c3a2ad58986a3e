// Twin of csrc/cuda/ptx/wgmma.h.
#pragma once
#include <type_traits>

#include "common/types.h"
#include "cuda/ptx/wgmma_descriptor.h"
#include "runtime.h"

namespace taut::ptx {

template <class T>
constexpr simt::Element wgmma_element = simt::Element::b1_and;
template <>
constexpr simt::Element wgmma_element<bf16> = simt::Element::bf16;
template <>
constexpr simt::Element wgmma_element<f16> = simt::Element::f16;
template <>
constexpr simt::Element wgmma_element<e4m3> = simt::Element::e4m3;
template <>
constexpr simt::Element wgmma_element<int8_t> = simt::Element::s8;

// What csrc/cuda/ptx has: nvcc would find no function for anything else.
template <class T, Major a, Major b, class D, int n>
constexpr void check_wgmma() {
  constexpr bool is_16_bit = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;
  constexpr bool is_float = is_16_bit || std::is_same_v<T, e4m3>;
  static_assert(is_16_bit || (a == Major::k && b == Major::k),
                "wgmma takes operands along MN for 16-bit elements only");
  static_assert(std::is_same_v<D, std::conditional_t<is_float, float, int32_t>>,
                "accumulators are float for bf16, f16 and e4m3, int32_t for int8_t and b1");
  static_assert(
      n == 8 || n == 16 || n == 32 || n == 64 || n == 96 || n == 128 || n == 192 || n == 256,
      "N is 8, 16, 32, 64, 96, 128, 192 or 256");
}

template <class T, Major a_major = Major::k, Major b_major = Major::k, class D, int size>
void wgmma_ss(D (&d)[size], uint64_t a, uint64_t b, bool accumulate) {
  check_wgmma<T, a_major, b_major, D, 2 * size>();
  simt::wgmma(wgmma_element<T>, 2 * size, a_major == Major::mn, b_major == Major::mn, d, nullptr, a,
              b, accumulate);
}
template <class T, Major b_major = Major::k, class D, int size>
void wgmma_rs(D (&d)[size], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  check_wgmma<T, Major::k, b_major, D, 2 * size>();
  simt::wgmma(wgmma_element<T>, 2 * size, false, b_major == Major::mn, d, a, 0, b, accumulate);
}
inline void wgmma_fence() { simt::wgmma_fence(); }
inline void wgmma_commit() { simt::wgmma_commit(); }
template <int pending>
void wgmma_wait() {
  simt::wgmma_wait(pending);
}
template <class T, int size>
void hold_registers(T (&)[size]) {}

}  // namespace taut::ptx
