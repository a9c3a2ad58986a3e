// Two matrix products the way real kernels are written, so that the executor is seen to find
// nothing in them: cp.async stages with ldmatrix and mma, and a warp-specialised TMA ring with
// wgmma.
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/swizzle.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/wgmma.h"
#include "simt.h"

using namespace taut;
using namespace taut::ptx;

namespace {

struct Params {
  TensorMap a_map, b_map;  // boxes of 64 rows x 64, 128B swizzle
  const bf16 *a, *b;       // (m, k), (n, k)
  float* c;                // (m, n)
  int m, n, k;             // k is a multiple of 64
};

// ---- sm_80: 64 x 64 tiles, 4 warps of 16 rows, three stages of 64 k. Rows past the end are zeros.

constexpr int kTile = 64 * 128;  // bytes of 64 rows of 64 bf16

__device__ inline void load_stage(const bf16* from, int rows, int k, int row0, int k0,
                                  uint8_t* tile) {
  for (int i = threadIdx.x; i < 64 * 8; i += 128) {
    const int row = i / 8, chunk = i % 8;
    const bool inside = row0 + row < rows;
    const bf16* source = from + (inside ? int64_t{row0 + row} * k + k0 + chunk * 8 : 0);
    cp_async<16>(tile + swizzle_128(row * 128 + chunk * 16), source, inside ? 16 : 0);
  }
}

__global__ void __launch_bounds__(128) mma_pipeline(const __grid_constant__ Params p) {
  const int row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int steps = p.k / 64;
  const auto stage = [](int i) { return dynamic_shared() + i % 3 * 2 * kTile; };
  const auto load = [&](int i) {
    if (i < steps) {
      load_stage(p.a, p.m, p.k, row0, i * 64, stage(i));
      load_stage(p.b, p.n, p.k, column0, i * 64, stage(i) + kTile);
    }
    cp_async_commit();
  };
  float d[8][4] = {};
  load(0);
  load(1);
  for (int i = 0; i < steps; ++i) {
    cp_async_wait<1>();
    __syncthreads();
    load(i + 2);  // over the stage that all finished before this barrier
    const uint8_t *a = stage(i), *b = stage(i) + kTile;
    for (int k = 0; k < 4; ++k) {
      uint32_t fragment[4], columns[4];
      const int a_row = warp * 16 + lane % 16;
      ldmatrix_x4(fragment, a + swizzle_128(a_row * 128 + k * 32 + lane / 16 * 16));
      for (int n = 0; n < 8; n += 2) {
        const int b_row = n * 8 + lane / 16 * 8 + lane % 8;
        ldmatrix_x4(columns, b + swizzle_128(b_row * 128 + k * 32 + lane / 8 % 2 * 16));
        const uint32_t first[2] = {columns[0], columns[1]}, second[2] = {columns[2], columns[3]};
        mma_m16n8k16<bf16>(d[n], fragment, first);
        mma_m16n8k16<bf16>(d[n + 1], fragment, second);
      }
    }
  }
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + warp * 16 + lane / 4 + i / 2 * 8;
      const int column = column0 + n * 8 + lane % 4 * 2 + i % 2;
      if (row < p.m && column < p.n) p.c[int64_t{row} * p.n + column] = d[n][i];
    }
}

// ---- sm_90a: one producer warpgroup, two consumer warpgroups of 64 rows each, a ring of 3 stages.

constexpr int kStages = 3, kStageBytes = 3 * kTile;

__device__ inline void produce(const Params& p, uint8_t* ring, uint64_t* full, uint64_t* empty) {
  set_max_registers_down<40>();
  if (threadIdx.x != 0) return;
  for (int i = 0; i < p.k / 64; ++i) {
    const int s = i % kStages;
    uint8_t* stage = ring + s * kStageBytes;
    mbarrier_wait(empty + s, i / kStages % 2 ^ 1);
    mbarrier_arrive_expect(full + s, kStageBytes);
    tensor_load(stage, &p.a_map, full + s, i * 64, int(blockIdx.y * 128));
    tensor_load(stage + kTile, &p.a_map, full + s, i * 64, int(blockIdx.y * 128 + 64));
    tensor_load(stage + 2 * kTile, &p.b_map, full + s, i * 64, int(blockIdx.x * 64));
  }
}

__device__ inline void consume(const Params& p, uint8_t* ring, uint64_t* full, uint64_t* empty) {
  set_max_registers_up<232>();
  const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  float d[32];
  for (int i = 0; i < p.k / 64; ++i) {
    const int s = i % kStages;
    const uint8_t* stage = ring + s * kStageBytes;
    mbarrier_wait(full + s, i / kStages % 2);
    wgmma_fence();
    for (int k = 0; k < 4; ++k)
      wgmma_ss<bf16>(
          d, matrix_descriptor(stage + group * kTile + k * 32, 16, 1024, Swizzle::bytes_128),
          matrix_descriptor(stage + 2 * kTile + k * 32, 16, 1024, Swizzle::bytes_128), i + k > 0);
    wgmma_commit();
    // The stage before this one has been read when this one's products are the only ones left.
    wgmma_wait<1>();
    if (i > 0) mbarrier_arrive(empty + (i - 1) % kStages);
  }
  wgmma_wait<0>();
  hold_registers(d);
  // The two consumer warpgroups agree before they write.
  barrier_sync(1, 256);
  for (int i = 0; i < 32; ++i) {
    const int row = blockIdx.y * 128 + group * 64 + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    const int column = blockIdx.x * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row < p.m && column < p.n) p.c[int64_t{row} * p.n + column] = d[i];
  }
}

__global__ void __launch_bounds__(384, 1) wgmma_pipeline(const __grid_constant__ Params p) {
  uint8_t* ring = dynamic_shared();
  auto* full = reinterpret_cast<uint64_t*>(ring + kStages * kStageBytes);
  uint64_t* empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(full + s, 1);
      mbarrier_init(empty + s, 256);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128)
    produce(p, ring, full, empty);
  else
    consume(p, ring, full, empty);
}

}  // namespace

// c = a b^T by the kernel for sm_80 or for sm_90a.
extern "C" const char* matrix_product(const bf16* a, const bf16* b, float* c, int m, int n, int k,
                                      bool hopper, int schedule, uint64_t seed) {
  return simt::run([&] {
    const auto map = [k](const bf16* base, int rows) {
      const uint64_t sizes[2] = {uint64_t(k), uint64_t(rows)}, strides[1] = {2 * uint64_t(k)};
      const uint32_t box[2] = {64, 64};
      return simt::encode_tensor_map(base, 2, 2, sizes, strides, box, 128);
    };
    const Params p{map(a, m), map(b, n), a, b, c, m, n, k};
    const dim3 grid{unsigned(n + 63) / 64,
                    unsigned(hopper ? m + 127 : m + 63) / (hopper ? 128 : 64)};
    const size_t shared = hopper ? kStages * (kStageBytes + 16) : 3 * 2 * kTile;
    simt::Launch launch{
        hopper ? "wgmma_pipeline" : "mma_pipeline", grid, {hopper ? 384u : 128u}, shared};
    launch.schedule(schedule, seed).reads(a, size_t(m) * k).reads(b, size_t(n) * k);
    launch.writes(c, size_t(m) * n);
    launch(hopper ? wgmma_pipeline : mma_pipeline, p);
  });
}
