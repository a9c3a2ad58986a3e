// Checks that the launchers over low-bit weights share.
#pragma once
#include "cpu/gemm_tasks.h"
#include "cpu/lowbit_gemm.h"
#include "cpu/tensor.h"

namespace taut {

inline void check_width(int64_t bits, const char* op) {
  check(bits == 2 || bits == 3 || bits == 4 || bits == 8, op,
        "bits must be one of 2, 3, 4, 8, got ", bits);
}

inline void check_packed_lowbit(const Tensor& packed, int64_t bits, int64_t out_features,
                                int64_t in_features, const char* op) {
  check_cpu(packed, op, "packed");
  check_width(bits, op);
  check_dtype(packed, ScalarType::Byte, op, "packed");
  check(out_features > 0 && in_features > 0, op,
        "out_features and in_features must be at least 1, got ", out_features, " and ",
        in_features);
  const bool fits = packed.dim() == 5 && packed.size(0) == divide_up(out_features, kLowbitPanel) &&
                    packed.size(1) == divide_up(in_features, kLowbitBlock) &&
                    packed.size(2) == 2 * bits && packed.size(3) == kLowbitPanel &&
                    packed.size(4) == 4;
  if (!fits)
    check(false, op, "packed must be pack_lowbit of a (", out_features, ", ", in_features,
          ") weight of ", bits, " bits, got ", shape_of(packed));
  check(packed.is_contiguous(), op, "packed must be contiguous");
}

}  // namespace taut
