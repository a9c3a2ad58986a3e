// Linear layers over low-bit weights with activations that stay fp16 or bf16, by mma.sync.
//
// A block of threads computes a tile of 32 rows. Its four warps share the input features, not the
// tile: warp w takes every fourth block of 64 of them, in a pipeline of its own, and the four sums
// of an element are added in the order of the warps. So few rows and channels still keep many loads
// in flight, and the order of an element's sum depends on in_features alone.
//
// A lane of a product takes features 4 t to 4 t + 3 of 16, where the instruction's layout says 2 t,
// 2 t + 1, 2 t + 8 and 2 t + 9: the same permutation of x and of the weight, whose words then are
// whole fragments.
#pragma once
#include "cuda/lowbit_codes.cuh"
#include "cuda/lowbit_epilogue.cuh"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mma.h"

namespace taut {

template <int Columns>
struct LowbitFloatTile {
  static_assert(kLowbitPanel % Columns == 0 && Columns % 32 == 0, "a tile lies in one panel");
  static constexpr int kRows = 32, kColumns = Columns;
  static constexpr int kRowParts = kRows / 16, kColumnParts = Columns / 8;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  // In floats; fragments are stored without conflicts.
  static constexpr int kTotalStride = Columns + 8;
};

template <class Tile, int bits>
struct LowbitFloatShared {
  // From one row's 64 features to the next: lanes 4 g + t that read 8 bytes each, 8 t bytes into
  // row g, are in all banks.
  static constexpr int kRowStride = 2 * kLowbitBlock + 32;
  static constexpr int kRowBytes = Tile::kRows * kRowStride;
  static constexpr int kCodeStride = code_stride(Tile::kColumns);
  static constexpr int kStageBytes = kRowBytes + 4 * code_rows(bits) * kCodeStride;
  static constexpr int kStages = Tile::kWarps * 3 * kStageBytes <= kMostSharedBytes ? 3 : 2;
  static constexpr int kBytes = Tile::kWarps * kStages * kStageBytes;
  static_assert(kBytes <= kMostSharedBytes, "a block on sm_86 and sm_89 has no more");
  static constexpr int kTotalFloats = Tile::kRows * Tile::kTotalStride;
  static_assert(4 * Tile::kWarps * kTotalFloats <= kBytes, "totals take the place of the stages");
};

// The products of one block of threads.
template <class T, class Tile, int bits>
class LowbitFloats {
  using Shared = LowbitFloatShared<Tile, bits>;
  static constexpr int kRowParts = Tile::kRowParts, kColumnParts = Tile::kColumnParts;

 public:
  __device__ __forceinline__ LowbitFloats(const LowbitParams& p, int64_t first_row,
                                          int first_column, uint8_t* shared)
      : p_(p),
        shared_(shared),
        first_row_(first_row),
        first_column_(first_column),
        lane_(static_cast<int>(threadIdx.x % 32)),
        warp_(static_cast<int>(threadIdx.x / 32)),
        blocks_((p.in_features + kLowbitBlock - 1) / kLowbitBlock),
        row_parts_(p.rows - first_row > 16 ? 2 : 1) {}

  __device__ __forceinline__ void run() {
    const int count = (blocks_ - warp_ + Tile::kWarps - 1) / Tile::kWarps;
#pragma unroll
    for (int i = 0; i < Shared::kStages - 1; ++i) {
      if (i < count) load_stage(i);
      ptx::cp_async_commit();
    }
    for (int i = 0; i < count; ++i) {
      ptx::cp_async_wait<Shared::kStages - 2>();
      __syncwarp();  // the stage has arrived, and no lane reads the one that is loaded next
      if (i + Shared::kStages - 1 < count) load_stage(i + Shared::kStages - 1);
      ptx::cp_async_commit();
      multiply_stage(i);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    store_totals();
    __syncthreads();
    add_totals();
    __syncthreads();
  }

 private:
  __device__ __forceinline__ uint8_t* stage(int i) const {
    return shared_ + (warp_ * Shared::kStages + i % Shared::kStages) * Shared::kStageBytes;
  }
  __device__ __forceinline__ int block_of(int i) const { return warp_ + i * Tile::kWarps; }

  // Rows and features that there are not become zeros.
  __device__ __forceinline__ void load_stage(int i) const {
    uint8_t* place = stage(i);
    const int block = block_of(i);
    const T* x = static_cast<const T*>(p_.x);
    for_pieces<Tile::kRows * 8, 32>(lane_, [&](int j) {
      const int64_t row = first_row_ + j / 8;
      const int feature = block * kLowbitBlock + j % 8 * 8;
      const int count = row < p_.rows ? min(max(p_.in_features - feature, 0), 8) : 0;
      ptx::cp_async<16>(place + j / 8 * Shared::kRowStride + j % 8 * 16,
                        count > 0 ? x + row * p_.x_stride + feature : x, 2 * count);
    });
    constexpr int kPieces = Tile::kColumns / 4;  // of 16 bytes per row of words
    const int panel = first_column_ / kLowbitPanel;
    const uint8_t* words = p_.packed +
                           (int64_t{panel} * blocks_ + block) * (256 * code_rows(bits)) +
                           first_column_ % kLowbitPanel * 4;
    for_pieces<code_rows(bits) * kPieces, 32>(lane_, [&](int j) {
      ptx::cp_async<16>(
          place + Shared::kRowBytes + j / kPieces * 4 * Shared::kCodeStride + j % kPieces * 16,
          words + j / kPieces * 256 + j % kPieces * 16);
    });
  }

  __device__ __forceinline__ void multiply_stage(int i) {
    const uint8_t* rows = stage(i);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(rows + Shared::kRowBytes);
    const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int feature = block_of(i) * kLowbitBlock + half * 32;
      if (feature >= p_.in_features) break;
      const int group = feature / p_.group_size;
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint32_t a[kRowParts][4];
#pragma unroll
        for (int r = 0; r < kRowParts; ++r) {
          const uint8_t* row =
              rows + (16 * r + g) * Shared::kRowStride + half * 64 + step * 32 + 8 * t;
          const uint2 upper = *reinterpret_cast<const uint2*>(row);
          const uint2 lower = *reinterpret_cast<const uint2*>(row + 8 * Shared::kRowStride);
          a[r][0] = upper.x, a[r][1] = lower.x, a[r][2] = upper.y, a[r][3] = lower.y;
        }
#pragma unroll
        for (int j = 0; j < kColumnParts; ++j) {
          const uint32_t codes =
              load_codes<bits, Shared::kCodeStride>(words + 8 * j + g, half * 8 + step * 4 + t);
          const int channel = min(first_column_ + 8 * j + g, p_.out_features - 1);
          float v[4];
          values(codes, channel, group, v);
          const uint32_t b[2] = {ptx::pack<T>(v[0], v[1]), ptx::pack<T>(v[2], v[3])};
#pragma unroll
          for (int r = 0; r < kRowParts; ++r)
            if (r < row_parts_) ptx::mma_m16n8k16<T>(sums_[r][j], a[r], b);
        }
      }
      if (half == 1 || p_.group_size == 32 || feature + 32 >= p_.in_features) scale_sums(group);
    }
  }

  // What four codes in the top bits of their bytes stand for, before scaling.
  __device__ __forceinline__ void values(uint32_t codes, int channel, int group,
                                         float (&v)[4]) const {
    if (p_.codebook) {
      const float* table = p_.codebook + int64_t{channel} * p_.codebook_stride;
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = table[codes >> (8 * k + 8 - bits) & ((1 << bits) - 1)];
      return;
    }
    const float zero = p_.zero_point ? p_.zero_point[int64_t{channel} * p_.groups + group]
                                     : static_cast<float>(1 << (bits - 1));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      // 2^23 + n, whose lowest byte is n.
      const uint32_t large = __byte_perm(codes, 0x4b000000u, 0x7650u + k);
      constexpr float kStep = 1.0f / (1 << (8 - bits));
      v[k] = __fmaf_rn(__uint_as_float(large) - 8388608.0f, kStep, -zero);
    }
  }

  // totals += sums times the group's scale; the sums start again.
  __device__ __forceinline__ void scale_sums(int group) {
#pragma unroll
    for (int j = 0; j < kColumnParts; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int channel = min(first_column_ + 8 * j + 2 * (lane_ % 4) + e, p_.out_features - 1);
        const float scale = p_.scale[int64_t{channel} * p_.groups + group];
#pragma unroll
        for (int r = 0; r < kRowParts; ++r) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float& sum = sums_[r][j][2 * h + e];
            totals_[r][j][2 * h + e] = __fmaf_rn(sum, scale, totals_[r][j][2 * h + e]);
            sum = 0.0f;
          }
        }
      }
    }
  }

  __device__ __forceinline__ void store_totals() const {
    float* tile = reinterpret_cast<float*>(shared_) + warp_ * Shared::kTotalFloats;
#pragma unroll
    for (int r = 0; r < kRowParts; ++r) {
#pragma unroll
      for (int j = 0; j < kColumnParts; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = 16 * r + 8 * h + lane_ / 4, column = 8 * j + 2 * (lane_ % 4);
          *reinterpret_cast<float2*>(tile + row * Tile::kTotalStride + column) =
              make_float2(totals_[r][j][2 * h], totals_[r][j][2 * h + 1]);
        }
      }
    }
  }

  // Every warp's totals onto those of the first.
  __device__ __forceinline__ void add_totals() const {
    float* tile = reinterpret_cast<float*>(shared_);
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * Tile::kColumns;
         i += Tile::kThreads) {
      float* place = tile + i / Tile::kColumns * Tile::kTotalStride + i % Tile::kColumns;
      float total = *place;
#pragma unroll
      for (int w = 1; w < Tile::kWarps; ++w) total += place[w * Shared::kTotalFloats];
      *place = total;
    }
  }

  const LowbitParams& p_;
  uint8_t* shared_;
  int64_t first_row_;
  int first_column_, lane_, warp_;
  int blocks_;     // of input features
  int row_parts_;  // that have rows
  float sums_[kRowParts][kColumnParts][4] = {};
  float totals_[kRowParts][kColumnParts][4] = {};
};

template <class T, class Tile, int bits>
__global__ void __launch_bounds__(Tile::kThreads)
    lowbit_floats_kernel(const __grid_constant__ LowbitParams p) {
  const int tiles = (p.out_features + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t first_row = int64_t{blockIdx.x / tiles} * Tile::kRows;
  const int first_column = static_cast<int>(blockIdx.x % tiles) * Tile::kColumns;
  uint8_t* shared = dynamic_shared();
  {
    LowbitFloats<T, Tile, bits> products(p, first_row, first_column, shared);
    products.run();
  }
  lowbit_epilogue<Tile>(p, first_row, first_column, reinterpret_cast<const float*>(shared));
}

}  // namespace taut
