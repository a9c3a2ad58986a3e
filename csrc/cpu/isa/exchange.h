// exchange<stride>(v): lane i of the result is lane i ^ stride of v, for a power of two below
// Vec::kWidth.
#pragma once
#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {

#if defined(TAUT_ISA_portable)

template <int kStride>
inline Vec exchange(Vec a) {
  constexpr MaskLanes kFrom = {0 ^ kStride, 1 ^ kStride, 2 ^ kStride, 3 ^ kStride};
  return {__builtin_shuffle(a.lane, kFrom)};
}

#elif defined(TAUT_ISA_avx2)

template <int kStride>
inline Vec exchange(Vec a) {
  if constexpr (kStride == 4) {
    return {_mm256_permute2f128_ps(a.v, a.v, 0x01)};
  } else {
    return {_mm256_permute_ps(a.v, kStride == 1 ? 0xb1 : 0x4e)};
  }
}

#else

template <int kStride>
inline Vec exchange(Vec a) {
  if constexpr (kStride >= 4) {
    return {_mm512_shuffle_f32x4(a.v, a.v, kStride == 4 ? 0xb1 : 0x4e)};
  } else {
    return {_mm512_permute_ps(a.v, kStride == 1 ? 0xb1 : 0x4e)};
  }
}

#endif

}  // namespace TAUT_ISA
}  // namespace taut
