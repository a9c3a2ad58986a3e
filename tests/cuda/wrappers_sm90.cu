// Every wrapper that exists from sm_90 on: the compile test looks for the instruction of each in
// the machine code.
#include "cuda/device.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/tma.h"

using namespace taut;
using namespace taut::ptx;

extern "C" __global__ void stmatrix_all(const uint32_t* in, uint32_t* out) {
  uint8_t* row = dynamic_shared() + threadIdx.x * 16;
  stmatrix_x1(row, in[0]);
  stmatrix_x2(row + 512, *reinterpret_cast<const uint32_t (*)[2]>(in));
  stmatrix_x4(row + 1024, *reinterpret_cast<const uint32_t (*)[4]>(in));
  stmatrix_x4_trans(row + 2048, *reinterpret_cast<const uint32_t (*)[4]>(in));
  __syncthreads();
  out[threadIdx.x] = dynamic_shared()[threadIdx.x * 7];
}

struct CopyParams {
  TensorMap map2, map3, map4;
  uint8_t* bytes;
};

extern "C" __global__ void bulk_copies(const __grid_constant__ CopyParams p) {
  uint8_t* shared = dynamic_shared();
  auto* barrier = reinterpret_cast<uint64_t*>(shared + 65536);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    prefetch_tensor_map(&p.map2);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, 4 * 4096);
    tensor_load(shared, &p.map2, barrier, 0, 1);
    tensor_load(shared + 4096, &p.map3, barrier, 0, 1, 2);
    tensor_load(shared + 8192, &p.map4, barrier, 0, 1, 2, 3);
    bulk_load(shared + 12288, p.bytes, 4096, barrier);
  }
  mbarrier_wait(barrier, 0);
  shared[threadIdx.x] += 1;
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    tensor_store(&p.map2, shared, 0, 1);
    tensor_store(&p.map3, shared + 4096, 0, 1, 2);
    bulk_commit();
    tensor_store(&p.map4, shared + 8192, 0, 1, 2, 3);
    bulk_store(p.bytes, shared + 12288, 4096);
    bulk_commit();
    bulk_wait_read<1>();
    bulk_wait<0>();
    mbarrier_arrive(barrier);
    mbarrier_invalidate(barrier);
  }
}
