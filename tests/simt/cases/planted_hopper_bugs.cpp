// Kernels with one bug each, chosen by `bug`, that the executor must find; without it they pass.
// Copies, mbarriers and warpgroup products; planted_bugs.cpp has the rest.
#include <stdexcept>
#include <string>

#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/wgmma.h"
#include "simt.h"

using namespace taut;
using namespace taut::ptx;

namespace {

constexpr int kTile = 64 * 64 * 2;  // bytes: 64 rows of 64 bf16

struct Params {
  TensorMap map;       // the 64 x 64 bf16 matrix `in`, in boxes of all of it, 128B swizzle
  const uint16_t* in;  // the same
  float* out;          // 64 x 64
  int* flag;
  bool bug;
};

uint64_t* barrier() { return reinterpret_cast<uint64_t*>(dynamic_shared() + 2 * kTile); }

void start_barrier(const Params&, bool fence = true) {
  if (threadIdx.x == 0) {
    mbarrier_init(barrier(), 1);
    if (fence) fence_mbarrier_init();
  }
  __syncthreads();
}

void load_tile(const Params& p, uint8_t* tile, uint32_t bytes = kTile) {
  if (threadIdx.x != 0) return;
  mbarrier_arrive_expect(barrier(), bytes);
  tensor_load(tile, &p.map, barrier(), 0, 0);
}

// tile * tile^T, K = 64
void multiply_tile(float (&d)[32], const uint8_t* tile, Swizzle swizzle) {
  for (int k = 0; k < 4; ++k) {
    const uint64_t m = matrix_descriptor(tile + 32 * k, 16, 1024, swizzle);
    wgmma_ss<bf16>(d, m, m, k > 0);
  }
  wgmma_commit();
}

void write_out(const Params& p, const float (&d)[32]) {
  for (int i = 0; i < 32; ++i) p.out[threadIdx.x * 32 + i] = d[i];
}

// The matrix by ordinary stores.
void store_tile(const Params& p) {
  auto shared = reinterpret_cast<uint16_t*>(dynamic_shared());
  for (int i = threadIdx.x; i < kTile / 2; i += 128) shared[i] = p.in[i];
}

__global__ void wrong_swizzle(const __grid_constant__ Params p) {
  float d[32];
  start_barrier(p);
  load_tile(p, dynamic_shared());
  mbarrier_wait(barrier(), 0);
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), p.bug ? Swizzle::bytes_64 : Swizzle::bytes_128);
  wgmma_wait<0>();
  write_out(p, d);
}

__global__ void tile_not_aligned(const __grid_constant__ Params p) {
  float d[32];
  uint8_t* tile = dynamic_shared() + (p.bug ? 128 : 0);
  start_barrier(p);
  load_tile(p, tile);
  mbarrier_wait(barrier(), 0);
  wgmma_fence();
  multiply_tile(d, tile, Swizzle::bytes_128);
  wgmma_wait<0>();
}

__global__ void missing_wgmma_fence(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  if (!p.bug) wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  wgmma_wait<0>();
}

__global__ void accumulators_touched_after_fence(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  wgmma_wait<0>();
  for (int i = 0; i < 32; ++i) d[i] *= 0.5f;
  if (!p.bug) wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  wgmma_wait<0>();
}

__global__ void a_written_after_fence(const __grid_constant__ Params p) {
  float d[32];
  uint32_t a[4];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  if (p.bug) wgmma_fence();
  for (int i = 0; i < 4; ++i) a[i] = threadIdx.x;
  if (!p.bug) wgmma_fence();
  wgmma_rs<bf16>(d, a, matrix_descriptor(dynamic_shared(), 16, 1024, Swizzle::bytes_128), false);
  wgmma_commit();
  wgmma_wait<0>();
}

__global__ void missing_async_fence(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  if (!p.bug) fence_async_shared();
  __syncthreads();
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  wgmma_wait<0>();
}

__global__ void accumulators_read_early(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  if (p.bug)
    wgmma_wait<1>();
  else
    wgmma_wait<0>();
  write_out(p, d);
  wgmma_wait<0>();
}

__global__ void accumulators_written_early(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  if (!p.bug) wgmma_wait<0>();
  d[threadIdx.x % 32] = 0;
  wgmma_wait<0>();
}

__global__ void operand_overwritten(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  if (!p.bug) {
    wgmma_wait<0>();
    __syncthreads();
  }
  store_tile(p);
  wgmma_wait<0>();
}

__global__ void product_not_waited_for(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  if (!p.bug) wgmma_wait<0>();
}

__global__ void load_not_waited_for(const __grid_constant__ Params p) {
  start_barrier(p);
  load_tile(p, dynamic_shared());
  if (!p.bug) mbarrier_wait(barrier(), 0);
  __syncthreads();
  p.out[threadIdx.x] = dynamic_shared()[threadIdx.x];
  mbarrier_wait(barrier(), 0);
}

__global__ void mbarrier_without_fence(const __grid_constant__ Params p) {
  start_barrier(p, !p.bug);
  load_tile(p, dynamic_shared());
  mbarrier_wait(barrier(), 0);
}

__global__ void mbarrier_without_barrier(const __grid_constant__ Params p) {
  if (threadIdx.x == 0) {
    mbarrier_init(barrier(), 128);
    fence_mbarrier_init();
  }
  if (!p.bug) __syncthreads();
  mbarrier_arrive(barrier());
  mbarrier_wait(barrier(), 0);
}

__global__ void too_few_bytes_expected(const __grid_constant__ Params p) {
  start_barrier(p);
  load_tile(p, dynamic_shared(), p.bug ? kTile / 2 : kTile);
  mbarrier_wait(barrier(), 0);
}

__global__ void wrong_parity(const __grid_constant__ Params p) {
  start_barrier(p);
  load_tile(p, dynamic_shared());
  mbarrier_wait(barrier(), 0);
  if (p.bug) mbarrier_wait(barrier(), 1);
  p.out[threadIdx.x] = dynamic_shared()[threadIdx.x];
}

// The next load starts while slower threads still read the tile.
__global__ void load_over_readers(const __grid_constant__ Params p) {
  start_barrier(p);
  for (int i = 0; i < 2; ++i) {
    load_tile(p, dynamic_shared());
    mbarrier_wait(barrier(), i);
    p.out[threadIdx.x] = dynamic_shared()[threadIdx.x * 64];
    if (!p.bug) __syncthreads();
  }
}

__global__ void store_without_async_fence(const __grid_constant__ Params p) {
  reinterpret_cast<float*>(dynamic_shared())[threadIdx.x] = 1;
  if (!p.bug) fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(p.out, dynamic_shared(), 512);
    bulk_commit();
    bulk_wait<0>();
  }
}

__global__ void stored_tile_overwritten(const __grid_constant__ Params p) {
  auto shared = reinterpret_cast<float*>(dynamic_shared());
  for (int i = 0; i < 2; ++i) {
    shared[threadIdx.x] = i;
    fence_async_shared();
    __syncthreads();
    if (threadIdx.x == 0) {
      bulk_store(p.out + 128 * i, shared, 512);
      bulk_commit();
      if (!p.bug) bulk_wait_read<0>();
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) bulk_wait<0>();
}

__global__ void store_not_waited_for(const __grid_constant__ Params p) {
  reinterpret_cast<float*>(dynamic_shared())[threadIdx.x] = 1;
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(p.out, dynamic_shared(), 512);
    bulk_commit();
    if (!p.bug) bulk_wait_read<0>();
  }
}

__global__ void mbarrier_memory_reused(const __grid_constant__ Params p) {
  start_barrier(p);
  if (threadIdx.x == 0) {
    if (!p.bug) mbarrier_invalidate(barrier());
    *barrier() = 5;
  }
}

__global__ void warp_skips_product(const __grid_constant__ Params p) {
  float d[32];
  store_tile(p);
  fence_async_shared();
  __syncthreads();
  if (p.bug && threadIdx.x >= 96) return;
  wgmma_fence();
  multiply_tile(d, dynamic_shared(), Swizzle::bytes_128);
  wgmma_wait<0>();
}

struct Bug {
  const char* name;
  void (*kernel)(Params);
};
constexpr Bug kBugs[] = {
    {"wrong_swizzle", wrong_swizzle},
    {"tile_not_aligned", tile_not_aligned},
    {"missing_wgmma_fence", missing_wgmma_fence},
    {"accumulators_touched_after_fence", accumulators_touched_after_fence},
    {"a_written_after_fence", a_written_after_fence},
    {"missing_async_fence", missing_async_fence},
    {"accumulators_read_early", accumulators_read_early},
    {"accumulators_written_early", accumulators_written_early},
    {"operand_overwritten", operand_overwritten},
    {"product_not_waited_for", product_not_waited_for},
    {"load_not_waited_for", load_not_waited_for},
    {"mbarrier_without_fence", mbarrier_without_fence},
    {"mbarrier_without_barrier", mbarrier_without_barrier},
    {"too_few_bytes_expected", too_few_bytes_expected},
    {"wrong_parity", wrong_parity},
    {"load_over_readers", load_over_readers},
    {"store_without_async_fence", store_without_async_fence},
    {"stored_tile_overwritten", stored_tile_overwritten},
    {"store_not_waited_for", store_not_waited_for},
    {"mbarrier_memory_reused", mbarrier_memory_reused},
    {"warp_skips_product", warp_skips_product},
};

}  // namespace

// Runs kernel `name` on one block of 128 threads.
extern "C" const char* planted_bug(const char* name, bool bug, const uint16_t* in, float* out,
                                   int* flag, int schedule, uint64_t seed) {
  return simt::run([&] {
    for (const Bug& b : kBugs) {
      if (std::string(b.name) != name) continue;
      const uint64_t sizes[2] = {64, 64}, strides[1] = {128};
      const uint32_t box[2] = {64, 64};
      Params p{simt::encode_tensor_map(in, 2, 2, sizes, strides, box, 128), in, out, flag, bug};
      simt::Launch launch{name, {1}, {128}, 2 * kTile + 8};
      launch.schedule(schedule, seed).reads(in, 64 * 64).writes(out, 64 * 64).writes(flag, 1);
      launch(b.kernel, p);
      return;
    }
    throw std::runtime_error("no such kernel");
  });
}
