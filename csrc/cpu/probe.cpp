#include "cpu/probe.h"

#include <stdexcept>

namespace taut {

int64_t probe(const std::string& kind, int64_t units) {
  if (kind == "fp32") return TAUT_KERNEL(probe_fp32)(units);
  if (kind == "bf16") return TAUT_KERNEL(probe_bf16)(units);
  if (kind == "int8") return TAUT_KERNEL(probe_int8)(units);
  if (kind == "popcount") return TAUT_KERNEL(probe_popcount)(units);
  throw std::invalid_argument("probe: kind must be fp32, bf16, int8 or popcount, got " + kind);
}

}  // namespace taut
