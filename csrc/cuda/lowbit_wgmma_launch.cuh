// How the Hopper kernels are launched, for the launchers and for the host executor alike.
#pragma once
#include <type_traits>

#include "cuda/lowbit_wgmma_groups.cuh"

namespace taut {

template <class P, class Launch>
void launch_lowbit_products(const char* name, void (*kernel)(LowbitParams), const LowbitParams& p,
                            const Launch& launch) {
  using Tile = typename P::Tile;
  const int64_t tiles = ((p.rows + Tile::kRows - 1) / Tile::kRows) *
                        ((p.out_features + Tile::kColumns - 1) / Tile::kColumns);
  launch(name, kernel, tiles, Tile::kThreads, P::Shared::kBytes, p);
}

template <int bits, class Launch>
void launch_lowbit_wgmma(const LowbitParams& p, const Launch& launch) {
  if (!p.general())
    return launch_lowbit_products<LowbitWgmma<bits>>("lowbit_wgmma", lowbit_wgmma_kernel<bits>, p,
                                                     launch);
  const auto run = [&](auto chain) {
    constexpr int kChain = decltype(chain)::value;
    launch_lowbit_products<LowbitWgmmaGroups<bits, kChain>>(
        "lowbit_wgmma_groups", lowbit_wgmma_groups_kernel<bits, kChain>, p, launch);
  };
  if (p.groups > 1 && p.group_size == 32) return run(std::integral_constant<int, 1>{});
  if (p.groups > 1 && p.group_size == 64) return run(std::integral_constant<int, 2>{});
  run(std::integral_constant<int, 4>{});
}

}  // namespace taut
