// Linear layers over low-bit weights with integer activations, by mma.sync.
//
// A block of threads computes a tile of rows x channels. Stages of 128 input features pass through
// shared memory: rows of x in 128 bytes each, swizzled for ldmatrix, and the packed words as they
// are. A word is a B fragment register in waiting: four neighbouring features of one channel.
//
// Sums are whole numbers: neither the tile nor the order changes a bit of them. What follows is one
// fp32 operation at a time in the order of reference/lowbit_gemm.py, groups ascending.
#pragma once
#include "cuda/lowbit_epilogue.cuh"
#include "cuda/lowbit_stage.cuh"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace taut {

// Rows x Columns by warps of WarpRows x WarpColumns.
template <int Rows, int Columns, int WarpRows, int WarpColumns>
struct LowbitTile {
  static_assert(Columns % kLowbitPanel == 0, "a tile has whole panels");
  static_assert(WarpRows % 16 == 0 && WarpColumns % 8 == 0, "a warp has whole fragments");
  static constexpr int kRows = Rows, kColumns = Columns;
  static constexpr int kPanels = Columns / kLowbitPanel;
  static constexpr int kRowParts = WarpRows / 16, kColumnParts = WarpColumns / 8;
  static constexpr int kWarpRows = WarpRows, kWarpColumns = WarpColumns;
  static constexpr int kWarpsAcross = Columns / WarpColumns;
  static constexpr int kWarps = Rows / WarpRows * kWarpsAcross;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTotalStride =
      Columns + 8;  // floats; fragments are stored without conflicts
};

template <class Tile, int bits>
struct LowbitShared {
  using Stage = LowbitStage<Tile, bits>;
  static constexpr int kStageBytes = Stage::kBytes;
  static constexpr int kTotalBytes = 4 * Tile::kRows * Tile::kTotalStride;
  static constexpr int kStages = 3 * kStageBytes <= kMostSharedBytes ? 3 : 2;
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  static constexpr int kBytes = kPipelineBytes > kTotalBytes ? kPipelineBytes : kTotalBytes;
  static_assert(kBytes <= kMostSharedBytes, "a block on sm_86 and sm_89 has no more");
};

// The products of one block of threads. `general`: there are groups or zero points.
template <class Tile, int bits, bool general>
class LowbitProducts {
  using Shared = LowbitShared<Tile, bits>;
  using Stage = LowbitStage<Tile, bits>;
  static constexpr int kHalf = 1 << (bits - 1);
  static constexpr int kRowParts = Tile::kRowParts, kColumnParts = Tile::kColumnParts;

 public:
  __device__ __forceinline__ LowbitProducts(const LowbitParams& p, int64_t first_row, int panel,
                                            uint8_t* shared)
      : p_(p),
        shared_(shared),
        first_row_(first_row),
        panel_(panel),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % 32),
        row_(thread_ / 32 / Tile::kWarpsAcross * Tile::kWarpRows),
        column_(thread_ / 32 % Tile::kWarpsAcross * Tile::kWarpColumns) {}

  __device__ __forceinline__ void run() {
    const int stages = (p_.in_features + kStageFeatures - 1) / kStageFeatures;
#pragma unroll
    for (int s = 0; s < Shared::kStages - 1; ++s) {
      if (s < stages) load_stage(s);
      ptx::cp_async_commit();
    }
    for (int s = 0; s < stages; ++s) {
      ptx::cp_async_wait<Shared::kStages - 2>();
      __syncthreads();  // the stage has arrived, and nobody reads the one that is loaded next
      if (s + Shared::kStages - 1 < stages) load_stage(s + Shared::kStages - 1);
      ptx::cp_async_commit();
      multiply_stage(s);
    }
    if (!general) end_group(0);
    ptx::cp_async_wait<0>();
    __syncthreads();
    store_totals();
    __syncthreads();
  }

 private:
  __device__ __forceinline__ uint8_t* stage(int s) const {
    return shared_ + s % Shared::kStages * Shared::kStageBytes;
  }

  __device__ __forceinline__ void load_stage(int s) const {
    Stage::load(p_, first_row_, panel_, s, stage(s), thread_);
  }

  __device__ __forceinline__ void multiply_stage(int s) {
    const uint8_t* rows = stage(s);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(rows + Stage::kRowBytes);
    const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll(general ? 1 : 2)  // more would cost registers that sums and totals need
    for (int step = 0; step < kStageFeatures / 32; ++step) {
      const int end = s * kStageFeatures + (step + 1) * 32;
      if (general && end >= p_.in_features + 32) return;
      uint32_t a[kRowParts][4];
#pragma unroll
      for (int i = 0; i < kRowParts; ++i) {
        const int row = row_ + 16 * i + lane_ % 16;
        const uint32_t offset = row * kStageFeatures + step * 32 + lane_ / 16 * 16;
        ptx::ldmatrix_x4(a[i], rows + ptx::swizzle_128(offset));
      }
#pragma unroll
      for (int j = 0; j < kColumnParts; ++j) {
        const int channel = column_ + 8 * j + g;
        const uint32_t* block = words + channel / kLowbitPanel * Stage::kPanelWords +
                                step / 2 * code_rows(bits) * kCodeStride + channel % kLowbitPanel;
        const int quad = step % 2 * 8 + t;
        const uint32_t b[2] = {load_signed_codes<bits, kCodeStride>(block, quad),
                               load_signed_codes<bits, kCodeStride>(block, quad + 4)};
#pragma unroll
        for (int i = 0; i < kRowParts; ++i) ptx::mma_m16n8k32_s8(sums_[i][j], a[i], b);
        if (general && p_.x_zero_point != 0.0f)
          code_sums_[j] = add_bytes(b[0], add_bytes(b[1], code_sums_[j]));
      }
      if (!general) continue;
      if (p_.zero_point) {
#pragma unroll
        for (int i = 0; i < kRowParts; ++i) {
          row_sums_[i][0] = add_bytes(a[i][0], add_bytes(a[i][2], row_sums_[i][0]));
          row_sums_[i][1] = add_bytes(a[i][1], add_bytes(a[i][3], row_sums_[i][1]));
        }
      }
      if (end >= p_.in_features) {
        end_group(p_.groups - 1);
      } else if (end % p_.group_size == 0) {
        end_group(end / p_.group_size - 1);
      }
    }
  }

  // totals += the group's sums, corrected and scaled; the sums start again.
  __device__ __forceinline__ void end_group(int group) {
    float x_scale[kRowParts][2];
#pragma unroll
    for (int i = 0; i < kRowParts; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t row = first_row_ + row_ + 16 * i + 8 * h + lane_ / 4;
        const int x_group = min(group, p_.x_groups - 1);
        x_scale[i][h] = row < p_.rows ? p_.x_scale[row * p_.x_scale_stride + x_group] : 0.0f;
        if (general) row_sums_[i][h] = quad_sum(row_sums_[i][h]);
      }
    }
#pragma unroll
    for (int j = 0; j < kColumnParts; ++j) {
      const int code_sum = general ? quad_sum(code_sums_[j]) : 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = column_ + 8 * j + 2 * (lane_ % 4) + e;
        const int channel = panel_ * kLowbitPanel + column;
        const int64_t place = int64_t{channel} * p_.groups + group;
        const bool exists = channel < p_.out_features;
        const float scale = exists ? p_.scale[place] : 0.0f;
        float zero = kHalf, shift = 0.0f;
        if (general && p_.zero_point && exists) zero = p_.zero_point[place];
        if (general && p_.x_zero_point != 0.0f) {
          // The codes' sum is with the lanes of its column: 4 column to 4 column + 3.
          const int own = __shfl_sync(0xffffffffu, code_sum, 4 * (2 * (lane_ % 4) + e));
          const int width = min(p_.group_size, p_.in_features - group * p_.group_size);
          const double less = double(own >> (8 - bits)) - width * (double(zero) - kHalf);
          shift = __fmul_rn(p_.x_zero_point, static_cast<float>(less));
        }
        const float whole = floorf(zero);
        const int whole_steps = static_cast<int>(whole) - kHalf;
#pragma unroll
        for (int i = 0; i < kRowParts; ++i) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            int& sum = sums_[i][j][2 * h + e];
            float& total = totals_[i][j][2 * h + e];
            int exact = sum >> (8 - bits);  // of codes that are multiples of 2^(8 - bits)
            if (general) exact -= whole_steps * row_sums_[i][h];
            float value = __int2float_rn(exact);
            if (general) {
              value = __fadd_rn(value, -__fmul_rn(zero - whole, __int2float_rn(row_sums_[i][h])));
              if (p_.x_zero_point != 0.0f) value = __fadd_rn(value, -shift);
            }
            total = __fadd_rn(total, __fmul_rn(value, __fmul_rn(x_scale[i][h], scale)));
            sum = 0;
          }
        }
      }
      if (general) code_sums_[j] = 0;
    }
    if (general) {
#pragma unroll
      for (int i = 0; i < kRowParts; ++i) row_sums_[i][0] = row_sums_[i][1] = 0;
    }
  }

  __device__ __forceinline__ static int add_bytes(uint32_t bytes, int sum) {
    return __dp4a(static_cast<int>(bytes), 0x01010101, sum);
  }
  __device__ __forceinline__ static int quad_sum(int x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
  }

  __device__ __forceinline__ void store_totals() const {
    float* tile = reinterpret_cast<float*>(shared_);
#pragma unroll
    for (int i = 0; i < kRowParts; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnParts; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = row_ + 16 * i + 8 * h + lane_ / 4;
          const int column = column_ + 8 * j + 2 * (lane_ % 4);
          *reinterpret_cast<float2*>(tile + row * Tile::kTotalStride + column) =
              make_float2(totals_[i][j][2 * h], totals_[i][j][2 * h + 1]);
        }
      }
    }
  }

  const LowbitParams& p_;
  uint8_t* shared_;
  int64_t first_row_;
  int panel_, thread_, lane_;
  int row_, column_;  // this warp's within the tile
  int sums_[kRowParts][kColumnParts][4] = {};
  float totals_[kRowParts][kColumnParts][4] = {};
  int row_sums_[kRowParts][2] = {};  // of activations, with zero points
  int code_sums_[kColumnParts] = {};
};

// Neighbouring blocks share rows of x; weights stay in the cache that all blocks share.
template <class Tile, int bits, bool general>
__global__ void __launch_bounds__(Tile::kThreads)
    lowbit_linear_kernel(const __grid_constant__ LowbitParams p) {
  const int tiles = (p.out_features + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t first_row = int64_t{blockIdx.x / tiles} * Tile::kRows;
  const int panel = blockIdx.x % tiles * Tile::kPanels;
  uint8_t* shared = dynamic_shared();
  {
    LowbitProducts<Tile, bits, general> products(p, first_row, panel, shared);
    products.run();
  }
  lowbit_epilogue<Tile>(p, first_row, panel * kLowbitPanel, reinterpret_cast<const float*>(shared));
}

}  // namespace taut
