// Which kernels serve packed signs and 1-bit linear layers, for the launchers and for the host
// executor alike: `launch(name, kernel, blocks, threads, shared bytes, params)`.
#pragma once
#include "cuda/binary_bits.cuh"
#include "cuda/binary_gemm.cuh"
#include "cuda/binary_tiles.h"

namespace taut {

// A warp per row, as many blocks as that takes; `rows` is not 0.
inline int64_t row_blocks(int64_t rows) {
  constexpr int64_t kMost = 1 << 16, per_block = kRowThreads / 32;
  const int64_t blocks = (rows + per_block - 1) / per_block;
  return blocks < kMost ? blocks : kMost;
}

template <class Launch>
void launch_pack_bits(const PackBitsParams& p, FloatType type, const Launch& launch) {
  const auto kernel = type == FloatType::f32    ? pack_bits_kernel<float>
                      : type == FloatType::bf16 ? pack_bits_kernel<bf16>
                                                : pack_bits_kernel<f16>;
  launch("pack_bits", kernel, row_blocks(p.rows), kRowThreads, 0, p);
}

template <class Launch>
void launch_unpack_bits(const UnpackBitsParams& p, const Launch& launch) {
  launch("unpack_bits", unpack_bits_kernel, row_blocks(p.rows), kRowThreads, 0, p);
}

template <class Launch>
void launch_code_planes(const CodePlanesParams& p, const Launch& launch) {
  launch("code_planes", code_planes_kernel, row_blocks(p.rows), kRowThreads, 0, p);
}

template <class Launch>
void launch_binary_linear(const BinaryLinearParams& p, const Launch& launch) {
  const auto run = [&](auto tile) {
    using S = decltype(tile);
    launch("binary_linear", binary_linear_kernel<S>, binary_blocks<S>(p), S::kThreads,
           S::kSharedBytes, p);
  };
  if (choose_binary_tiles(p.rows, p.out_features) == BinaryTiles::rows_128)
    return run(BinaryTile<4>{});
  run(BinaryTile<1>{});
}

template <class Launch>
void launch_binary_norm(const BinaryNormParams& p, const Launch& launch) {
  const auto kernel = p.type == FloatType::f32    ? binary_norm_kernel<float>
                      : p.type == FloatType::bf16 ? binary_norm_kernel<bf16>
                                                  : binary_norm_kernel<f16>;
  launch("binary_norm", kernel, row_blocks(p.rows), kRowThreads, 0, p);
}

}  // namespace taut
