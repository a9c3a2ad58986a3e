// Linear layers over low-bit weights with integer activations, one scale per channel, by Hopper's
// wgmma: the products of lowbit_gemm.cuh transposed. A is the weight, expanded in registers, so
// that codes of any width cost no shared memory but their own; B is rows of x, as they lie in a
// stage. lowbit_wgmma_groups.cuh is for the rest: scales per group, zero points.
#pragma once
#include "cuda/lowbit_epilogue.cuh"
#include "cuda/lowbit_stage.cuh"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/wgmma.h"

namespace taut {

// Rows x 128 channels; a warpgroup takes the 64 channels of a panel.
template <int Rows>
struct LowbitWgmmaTile {
  static constexpr int kRows = Rows, kColumns = 128;
  static constexpr int kPanels = kColumns / kLowbitPanel;
  static constexpr int kWarps = 4 * kPanels, kThreads = 32 * kWarps;
  // Floats. The rows that the lanes of a warp store at once lie 8 banks apart.
  static constexpr int kTotalStride = kColumns + 4;
};

// Two blocks share a multiprocessor: while codes of one are expanded, the other's products run.
constexpr int kWgmmaStages = 3;
constexpr int kAtom = 1024;  // bytes of 8 swizzled rows

// `extra` bytes follow what a stage has in any case.
template <class Tile, int bits, int extra = 0>
struct LowbitWgmmaShared {
  using Stage = LowbitStage<Tile, bits>;
  static constexpr int kStageBytes = (Stage::kBytes + extra + kAtom - 1) / kAtom * kAtom;
  static constexpr int kPipelineBytes = kWgmmaStages * kStageBytes;
  static constexpr int kTotalBytes = 4 * Tile::kRows * Tile::kTotalStride;
  static constexpr int kBytes = kPipelineBytes > kTotalBytes ? kPipelineBytes : kTotalBytes;
};

// A for 32 input features, the step'th of a stage. `words` points to the first of the lane's two
// channels, 8 apart.
template <int bits>
__device__ __forceinline__ void load_weight(uint32_t (&a)[4], const uint32_t* words, int step,
                                            int lane) {
  const uint32_t* block = words + step / 2 * code_rows(bits) * kCodeStride;
  const int quad = step % 2 * 8 + lane % 4;
  a[0] = load_signed_codes<bits, kCodeStride>(block, quad);
  a[1] = load_signed_codes<bits, kCodeStride>(block + 8, quad);
  a[2] = load_signed_codes<bits, kCodeStride>(block, quad + 4);
  a[3] = load_signed_codes<bits, kCodeStride>(block + 8, quad + 4);
}

// B for them: rows of x.
__device__ __forceinline__ uint64_t rows_descriptor(const uint8_t* rows, int step) {
  return ptx::matrix_descriptor(rows + step * 32, 0, kAtom, ptx::Swizzle::bytes_128);
}

template <int bits>
class LowbitWgmma {
 public:
  using Tile = LowbitWgmmaTile<128>;
  using Shared = LowbitWgmmaShared<Tile, bits>;

 private:
  using Stage = typename Shared::Stage;
  static constexpr int kSteps = kStageFeatures / 32;

 public:
  __device__ __forceinline__ LowbitWgmma(const LowbitParams& p, int64_t first_row, int panel,
                                         uint8_t* shared)
      : p_(p),
        shared_(shared),
        first_row_(first_row),
        panel_(panel),
        lane_(static_cast<int>(threadIdx.x % 32)),
        warpgroup_(static_cast<int>(threadIdx.x / 128)),
        channel_(static_cast<int>(threadIdx.x / 32 % 4) * 16 + lane_ / 4),
        stages_((p.in_features + kStageFeatures - 1) / kStageFeatures) {}

  __device__ __forceinline__ void run() {
#pragma unroll
    for (int s = 0; s < kWgmmaStages - 1; ++s) {
      if (s < stages_) load_stage(s);
      ptx::cp_async_commit();
    }
    for (int s = 0; s < stages_; ++s) {
      ptx::cp_async_wait<kWgmmaStages - 2>();
      ptx::fence_async_shared();
      __syncthreads();  // the stage has arrived, and nobody reads the one that is loaded next
      if (s + kWgmmaStages - 1 < stages_) load_stage(s + kWgmmaStages - 1);
      ptx::cp_async_commit();
      multiply_stage(stage(s));
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    store_totals();
    __syncthreads();
  }

 private:
  __device__ __forceinline__ uint8_t* stage(int s) const {
    return shared_ + s % kWgmmaStages * Shared::kStageBytes;
  }

  __device__ __forceinline__ void load_stage(int s) const {
    Stage::load(p_, first_row_, panel_, s, stage(s), static_cast<int>(threadIdx.x));
  }

  __device__ __forceinline__ void multiply_stage(const uint8_t* rows) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(rows + Stage::kRowBytes) +
                            warpgroup_ * Stage::kPanelWords + channel_;
    uint32_t a[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      load_weight<bits>(a[step], words, step, lane_);
      ptx::hold_registers(a[step]);
    }
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      ptx::wgmma_rs<int8_t>(sums_, a[step], rows_descriptor(rows, step), true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::hold_registers(sums_);
  }

  // Sum i is of channel_ + 8 (i / 2 % 2) and row 8 (i / 4) + 2 (lane % 4) + i % 2.
  __device__ __forceinline__ void store_totals() const {
    float* tile = reinterpret_cast<float*>(shared_);
    const int column = warpgroup_ * kLowbitPanel + channel_;
    float scale[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int channel = panel_ * kLowbitPanel + column + 8 * h;
      scale[h] = channel < p_.out_features ? p_.scale[channel] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < Tile::kRows / 4; ++i) {
      const int row = i / 2 * 8 + 2 * (lane_ % 4) + i % 2;
      const int64_t x_row = first_row_ + row;
      const float x_scale = x_row < p_.rows ? p_.x_scale[x_row * p_.x_scale_stride] : 0.0f;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float value = __int2float_rn(sums_[i / 2 * 4 + 2 * h + i % 2] >> (8 - bits));
        tile[row * Tile::kTotalStride + column + 8 * h] =
            __fadd_rn(0.0f, __fmul_rn(value, __fmul_rn(x_scale, scale[h])));
      }
    }
  }

  const LowbitParams& p_;
  uint8_t* shared_;
  int64_t first_row_;
  int panel_, lane_, warpgroup_;
  int channel_;  // of the panel: the first of this lane's two
  int stages_;
  int32_t sums_[Tile::kRows / 2] = {};
};

// The tile of this block, of products and all: P is LowbitWgmma or LowbitWgmmaGroups.
template <class P>
__device__ __forceinline__ void run_lowbit_tile(const LowbitParams& p) {
  using Tile = typename P::Tile;
  const int tiles = (p.out_features + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t first_row = int64_t{blockIdx.x / tiles} * Tile::kRows;
  const int panel = blockIdx.x % tiles * Tile::kPanels;
  uint8_t* shared = dynamic_shared();
  {
    P products(p, first_row, panel, shared);
    products.run();
  }
  lowbit_epilogue<Tile>(p, first_row, panel * kLowbitPanel, reinterpret_cast<const float*>(shared));
}

template <int bits>
__global__ void __launch_bounds__(LowbitWgmma<bits>::Tile::kThreads, 2)
    lowbit_wgmma_kernel(const __grid_constant__ LowbitParams p) {
  run_lowbit_tile<LowbitWgmma<bits>>(p);
}

}  // namespace taut
