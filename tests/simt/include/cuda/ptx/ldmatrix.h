// Twin of csrc/cuda/ptx/ldmatrix.h.
#pragma once
#include "runtime.h"

namespace taut::ptx {

inline void ldmatrix_x1(uint32_t& r, const void* row) { simt::load_matrix(&r, 1, false, row); }
inline void ldmatrix_x1_trans(uint32_t& r, const void* row) { simt::load_matrix(&r, 1, true, row); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { simt::load_matrix(r, 2, false, row); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  simt::load_matrix(r, 2, true, row);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { simt::load_matrix(r, 4, false, row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  simt::load_matrix(r, 4, true, row);
}
inline void stmatrix_x1(void* row, uint32_t r) { simt::store_matrix(row, 1, false, &r); }
inline void stmatrix_x2(void* row, const uint32_t (&r)[2]) { simt::store_matrix(row, 2, false, r); }
inline void stmatrix_x4(void* row, const uint32_t (&r)[4]) { simt::store_matrix(row, 4, false, r); }
inline void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) {
  simt::store_matrix(row, 4, true, r);
}

}  // namespace taut::ptx
