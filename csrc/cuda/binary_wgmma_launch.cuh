// How the Hopper kernel is launched, for the launchers and for the host executor alike.
#pragma once
#include "cuda/binary_wgmma.cuh"

namespace taut {

template <class Launch>
void launch_binary_wgmma(const BinaryLinearParams& p, const Launch& launch) {
  const auto run = [&](auto tile) {
    using S = decltype(tile);
    launch("binary_wgmma", binary_wgmma_kernel<S>, binary_blocks<S>(p), S::kThreads,
           S::kSharedBytes, p);
  };
  const bool pairs = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.plane_stride % 2 == 0 &&
                     (p.rows == 1 || p.x_stride % 2 == 0);
  if (pairs) return run(BinaryWgmmaTile<2>{});
  run(BinaryWgmmaTile<1>{});
}

}  // namespace taut
