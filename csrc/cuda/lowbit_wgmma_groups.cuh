// The products of lowbit_wgmma.cuh with scales per group of input features, or zero points.
//
// A chain of wgmma runs for as many features as have one scale, 32, 64 or 128. Behind it threads
// add scaled sums to totals, which take registers of their own: so a tile has half the rows. With
// small groups that is more work than the products are; the four warpgroups of two blocks take
// turns at both. It is done one fp32 operation at a time in the order of reference/lowbit_gemm.py,
// groups ascending, as in lowbit_gemm.cuh.
#pragma once
#include "cuda/lowbit_wgmma.cuh"
#include "cuda/ptx/bits.h"

namespace taut {

// What a stage has besides: for each of its chains the scales of rows, scales of channels and zero
// points. The latter are there only where the weight has any.
template <class Tile, int chain>
struct LowbitGroupStage {
  static constexpr int kChains = kStageFeatures / 32 / chain;
  static constexpr int kScales = kChains * Tile::kRows;
  static constexpr int kZeros = kScales + kChains * Tile::kColumns;
  static constexpr int kBytes = 4 * (kZeros + kChains * Tile::kColumns);
};

// `chain`: products of 32 features each. A group is one chain, or two where it has 256 features, or
// all of them where it is the only one.
template <int bits, int chain>
class LowbitWgmmaGroups {
 public:
  using Tile = LowbitWgmmaTile<64>;
  using Groups = LowbitGroupStage<Tile, chain>;
  using Pipeline = LowbitWgmmaShared<Tile, bits, Groups::kBytes>;
  // Behind the stages: for each chain of a stage, the rows' sums since their groups began.
  struct Shared {
    static constexpr int kBytes = Pipeline::kBytes + 4 * Groups::kChains * Tile::kRows;
  };

 private:
  using Stage = typename Pipeline::Stage;
  static constexpr int kHalf = 1 << (bits - 1), kChains = Groups::kChains;
  static_assert(Tile::kThreads == 4 * Tile::kRows, "a thread sums 32 features of a row");

 public:
  __device__ __forceinline__ LowbitWgmmaGroups(const LowbitParams& p, int64_t first_row, int panel,
                                               uint8_t* shared)
      : p_(p),
        shared_(shared),
        first_row_(first_row),
        panel_(panel),
        thread_(static_cast<int>(threadIdx.x)),
        channel_(thread_ / 32 * 16 + thread_ % 32 / 4),
        group_shift_(p.groups == 1         ? 31
                     : p.group_size == 256 ? 1
                                           : 0) {}

  __device__ __forceinline__ void run() {
    const int stages = (p_.in_features + kStageFeatures - 1) / kStageFeatures;
#pragma unroll
    for (int s = 0; s < kWgmmaStages - 1; ++s) {
      if (s < stages) load_stage(s);
      ptx::cp_async_commit();
    }
    for (int s = 0; s < stages; ++s) {
      ptx::cp_async_wait<kWgmmaStages - 2>();
      ptx::fence_async_shared();
      __syncthreads();  // the stage has arrived, and nobody reads the one that is loaded next
      if (s + kWgmmaStages - 1 < stages) load_stage(s + kWgmmaStages - 1);
      ptx::cp_async_commit();
      multiply_stage(s);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    store_totals();
    __syncthreads();
  }

 private:
  __device__ __forceinline__ uint8_t* stage(int s) const {
    return shared_ + s % kWgmmaStages * Pipeline::kStageBytes;
  }
  __device__ __forceinline__ float* groups_of(int s) const {
    return reinterpret_cast<float*>(stage(s) + Stage::kBytes);
  }
  __device__ __forceinline__ int* row_sums() const {
    return reinterpret_cast<int*>(shared_ + Pipeline::kBytes);
  }
  // Chains are numbered from the first stage on.
  __device__ __forceinline__ int group_of(int number) const {
    return min(number >> group_shift_, p_.groups - 1);
  }

  __device__ __forceinline__ bool ends_group(int number) const {
    const int after = number + 1;
    return after * 32 * chain >= p_.in_features || after >> group_shift_ << group_shift_ == after;
  }

  __device__ __forceinline__ void load_stage(int s) const {
    // Addresses are made anew for each stage: kept, they would take the registers of sums.
    const int thread = ptx::opaque(thread_);
    Stage::load(p_, first_row_, panel_, s, stage(s), thread);
    float* groups = groups_of(s);
    for_pieces<kChains * Tile::kRows, Tile::kThreads>(thread, [&](int i) {
      const int64_t row = first_row_ + i % Tile::kRows;
      const int group = min(group_of(s * kChains + i / Tile::kRows), p_.x_groups - 1);
      const bool exists = row < p_.rows;
      ptx::cp_async<4>(groups + i, p_.x_scale + (exists ? row * p_.x_scale_stride + group : 0),
                       exists ? 4 : 0);
    });
    for_pieces<kChains * Tile::kColumns, Tile::kThreads>(thread, [&](int i) {
      const int channel = panel_ * kLowbitPanel + i % Tile::kColumns;
      const int group = group_of(s * kChains + i / Tile::kColumns);
      const bool exists = channel < p_.out_features;
      const int64_t place = exists ? int64_t{channel} * p_.groups + group : 0;
      ptx::cp_async<4>(groups + Groups::kScales + i, p_.scale + place, exists ? 4 : 0);
      if (p_.zero_point)
        ptx::cp_async<4>(groups + Groups::kZeros + i, p_.zero_point + place, exists ? 4 : 0);
    });
  }

  __device__ __forceinline__ void multiply_stage(int s) {
    const uint8_t* rows = stage(s);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(rows + Stage::kRowBytes) +
                            channel_ / kLowbitPanel * Stage::kPanelWords + channel_ % kLowbitPanel;
#pragma unroll 1
    for (int c = 0; c < kChains; ++c) {
      const int begin = s * kStageFeatures + c * 32 * chain, number = s * kChains + c;
      if (begin >= p_.in_features) break;
      uint32_t a[chain][4];
#pragma unroll
      for (int i = 0; i < chain; ++i) {
        load_weight<bits>(a[i], words, c * chain + i, thread_ % 32);
        // A block of the weight that there is not has zeros, which are no codes.
        if (p_.x_zero_point != 0.0f && begin + 32 * i < p_.in_features) {
          code_sums_[0] = add_bytes(a[i][0], add_bytes(a[i][2], code_sums_[0]));
          code_sums_[1] = add_bytes(a[i][1], add_bytes(a[i][3], code_sums_[1]));
        }
        ptx::hold_registers(a[i]);
      }
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < chain; ++i)
        ptx::wgmma_rs<int8_t>(sums_, a[i], rows_descriptor(rows, c * chain + i),
                              i > 0 || group_began_);
      ptx::wgmma_commit();
      if (c == 0 && p_.zero_point) {
        sum_rows(rows);
        __syncthreads();
      }
      ptx::wgmma_wait<0>();
      ptx::hold_registers(sums_);
#pragma unroll
      for (int i = 0; i < chain; ++i) ptx::hold_registers(a[i]);  // products read them so long
      const bool ends = ends_group(number);
      group_began_ = !ends;
      if (!ends) continue;
      if (p_.zero_point || p_.x_zero_point != 0.0f) {
        end_group<true>(groups_of(s), c, group_of(number));
      } else {
        end_group<false>(groups_of(s), c, group_of(number));
      }
    }
  }

  // Four threads per row; those that have a chain together add up.
  __device__ __forceinline__ void sum_rows(const uint8_t* rows) {
    const int row = thread_ / 4, quarter = thread_ % 4;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t offset = row * kStageFeatures + quarter * 32 + i * 16;
      const uint4 x = *reinterpret_cast<const uint4*>(rows + ptx::swizzle_128(offset));
      sum = add_bytes(x.x, add_bytes(x.y, add_bytes(x.z, add_bytes(x.w, sum))));
    }
#pragma unroll
    for (int lanes = 1; lanes < chain; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (group_began_) sum += row_sum_;
    row_sum_ = sum;
    if (quarter % chain == 0) row_sums()[quarter / chain * Tile::kRows + row] = sum;
  }

  // totals += the group's sums, corrected and scaled. Sum i is of channel_ + 8 (i / 2 % 2) and row
  // 8 (i / 4) + 2 (lane % 4) + i % 2.
  template <bool corrected>
  __device__ __forceinline__ void end_group(const float* groups, int c, int group) {
    const float* x_scales = groups + c * Tile::kRows + 2 * (thread_ % 4);
    const int* sums_of_rows = row_sums() + c * Tile::kRows + 2 * (thread_ % 4);
    const int place = c * Tile::kColumns + channel_;
    float scale[2], rest[2], shift[2] = {0.0f, 0.0f};
    int whole_steps[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale[h] = groups[Groups::kScales + place + 8 * h];
      const float zero = corrected && p_.zero_point ? groups[Groups::kZeros + place + 8 * h]
                                                    : static_cast<float>(kHalf);
      const float whole = floorf(zero);
      rest[h] = zero - whole;
      whole_steps[h] = static_cast<int>(whole) - kHalf;
      if (!corrected || p_.x_zero_point == 0.0f) continue;
      // The codes' sum is with the four lanes of the channel.
      int own = code_sums_[h];
      own += __shfl_xor_sync(0xffffffffu, own, 1);
      own += __shfl_xor_sync(0xffffffffu, own, 2);
      const int width = min(p_.group_size, p_.in_features - group * p_.group_size);
      const double less = double(own >> (8 - bits)) - width * (double(zero) - kHalf);
      shift[h] = __fmul_rn(p_.x_zero_point, static_cast<float>(less));
      code_sums_[h] = 0;
    }
#pragma unroll
    for (int j = 0; j < Tile::kRows / 8; ++j) {
      const float2 x_scale = *reinterpret_cast<const float2*>(x_scales + 8 * j);
      int2 row_sum = make_int2(0, 0);
      if (corrected && p_.zero_point)
        row_sum = *reinterpret_cast<const int2*>(sums_of_rows + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int h = i / 2, of_row = i % 2 ? row_sum.y : row_sum.x;
        int exact = sums_[4 * j + i] >> (8 - bits);  // of codes that are multiples of 2^(8 - bits)
        if (corrected) exact -= whole_steps[h] * of_row;
        float value = __int2float_rn(exact);
        if (corrected) {
          value = __fadd_rn(value, -__fmul_rn(rest[h], __int2float_rn(of_row)));
          value = __fadd_rn(value, -shift[h]);
        }
        float& total = totals_[4 * j + i];
        total =
            __fadd_rn(total, __fmul_rn(value, __fmul_rn(i % 2 ? x_scale.y : x_scale.x, scale[h])));
      }
    }
  }

  __device__ __forceinline__ static int add_bytes(uint32_t bytes, int sum) {
    return __dp4a(static_cast<int>(bytes), 0x01010101, sum);
  }

  __device__ __forceinline__ void store_totals() const {
    float* tile = reinterpret_cast<float*>(shared_);
#pragma unroll
    for (int i = 0; i < Tile::kRows / 2; ++i) {
      const int row = i / 4 * 8 + 2 * (thread_ % 4) + i % 2;
      tile[row * Tile::kTotalStride + channel_ + i / 2 % 2 * 8] = totals_[i];
    }
  }

  const LowbitParams& p_;
  uint8_t* shared_;
  int64_t first_row_;
  int panel_, thread_;
  int channel_;      // of the tile: the first of this lane's two
  int group_shift_;  // a group has 2^group_shift_ chains; more than there are, if it is alone
  bool group_began_ = false;
  int row_sum_ = 0;        // with zero points: of a row, in its four lanes
  int code_sums_[2] = {};  // with a zero point of x: of this lane's share of its channels
  int32_t sums_[Tile::kRows / 2] = {};
  float totals_[Tile::kRows / 2] = {};
};

template <int bits, int chain>
__global__ void __launch_bounds__(LowbitWgmmaGroups<bits, chain>::Tile::kThreads, 2)
    lowbit_wgmma_groups_kernel(const __grid_constant__ LowbitParams p) {
  run_lowbit_tile<LowbitWgmmaGroups<bits, chain>>(p);
}

}  // namespace taut
