// Loops over registers that say how much arithmetic a core can do at most.
#pragma once
#include <cstdint>
#include <string>

#include "cpu/dispatch.h"

namespace taut {

// Repeats a block of products `units` times and returns the operations of one block: a multiply-add
// counts 2, and so do xor and count of one bit.
using Probe = int64_t(int64_t units);
TAUT_DECLARE_KERNEL(probe_fp32, Probe)
TAUT_DECLARE_KERNEL(probe_bf16, Probe)
TAUT_DECLARE_KERNEL(probe_int8, Probe)
TAUT_DECLARE_KERNEL(probe_popcount, Probe)

// kind: fp32, bf16, int8 or popcount; std::invalid_argument for anything else.
TAUT_EXPORT int64_t probe(const std::string& kind, int64_t units);

}  // namespace taut
