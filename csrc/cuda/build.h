// What this build of libtaut_cuda has.
#pragma once

namespace taut {

// The kernels of *_sm90a.cu.
#ifdef TAUT_SM90A
constexpr bool kHasHopper = true;
#else
constexpr bool kHasHopper = false;
#endif

}  // namespace taut
