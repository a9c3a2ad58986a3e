// The tensor descriptor of the copy engine. No assembly: the same file serves the executor.
#pragma once
#include <cstdint>

namespace taut::ptx {

// What cuTensorMapEncodeTiled writes; kernels take it as a `const __grid_constant__` parameter.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

}  // namespace taut::ptx
