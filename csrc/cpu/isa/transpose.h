// Transposition of a square of 32-bit units held in kWidth vectors: lane c of row r goes to lane r
// of row c.
#pragma once
#include "cpu/isa/vec.h"

namespace taut {
namespace TAUT_ISA {

#if defined(TAUT_ISA_portable)

inline void transpose(Vec (&rows)[Vec::kWidth]) {
  for (int r = 0; r < Vec::kWidth; ++r)
    for (int c = 0; c < r; ++c) {
      const float kept = rows[r].lane[c];
      rows[r].lane[c] = rows[c].lane[r];
      rows[c].lane[r] = kept;
    }
}

#elif defined(TAUT_ISA_avx2)

inline void transpose(Vec (&rows)[Vec::kWidth]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

#else

inline void transpose(Vec (&rows)[Vec::kWidth]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  // b[4g + i] now holds columns i, i + 4, i + 8, i + 12 of rows 4g..4g+3, a 128-bit lane each.
  for (int i = 0; i < 4; ++i) {
    const __m512 low01 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
    const __m512 high01 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    const __m512 low23 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    const __m512 high23 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    rows[i].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
    rows[i + 4].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
    rows[i + 8].v = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    rows[i + 12].v = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

#endif

}  // namespace TAUT_ISA
}  // namespace taut
