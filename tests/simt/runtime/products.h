// Arithmetic of matrix products, for mma and wgmma.
#pragma once
#include "runtime.h"

namespace simt {

int element_bits(Element element);

// sums (m x n, row-major) += a (m rows) * b (n columns); rows and columns are `words` 32-bit words
// of elements, `stride` words apart, smallest k in the lowest bits. Sums are floats or int32.
void multiply(Element element, int m, int n, int words, const uint32_t* a, const uint32_t* b,
              int stride, uint32_t* sums);

}  // namespace simt
