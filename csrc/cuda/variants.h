// Which kernel each op last ran, for Python to ask: see taut_cuda_last_variant.
#pragma once

namespace taut {

// Remembers that `op` ran `variant`; both are literals.
void record_variant(const char* op, const char* variant);

}  // namespace taut
