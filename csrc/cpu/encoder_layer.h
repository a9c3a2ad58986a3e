// What Python may ask of kept layers besides the ops.
#pragma once
#include <cstdint>

#include "cpu/dispatch.h"

namespace taut {

// The layer of this number is not used again.
TAUT_EXPORT void forget_layer(int64_t number);

}  // namespace taut
