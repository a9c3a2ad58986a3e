// Every wrapper that exists on sm_90a only, in a kernel of its own: the compile test looks for the
// instruction of each in the machine code.
#include "cuda/device.h"
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/wgmma.h"

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

template <class T, class D, int N, Major a_major, Major b_major>
__device__ __forceinline__ void products(D* out) {
  D d[N / 2];
  const uint8_t* shared = dynamic_shared();
  const uint64_t a = matrix_descriptor(shared, 16, 1024, Swizzle::bytes_128);
  const uint64_t b = matrix_descriptor(shared + 16384, 16, 1024, Swizzle::bytes_128);
  const uint32_t registers[4] = {1, 2, 3, threadIdx.x};
  wgmma_fence();
  wgmma_ss<T, a_major, b_major>(d, a, b, false);
  wgmma_commit();
  wgmma_rs<T, b_major>(d, registers, b, true);
  wgmma_commit();
  wgmma_wait<1>();
  wgmma_wait<0>();
  for (int i = 0; i < N / 2; ++i) out[i * 128 + threadIdx.x] = d[i];
}

template <class T, class D, Major a_major = Major::k, Major b_major = Major::k>
__device__ __forceinline__ void all_products(D* out) {
  products<T, D, 8, a_major, b_major>(out);
  products<T, D, 16, a_major, b_major>(out);
  products<T, D, 32, a_major, b_major>(out);
  products<T, D, 64, a_major, b_major>(out);
  products<T, D, 96, a_major, b_major>(out);
  products<T, D, 128, a_major, b_major>(out);
  products<T, D, 192, a_major, b_major>(out);
  products<T, D, 256, a_major, b_major>(out);
}

extern "C" __global__ void __launch_bounds__(128, 1) wgmma_bf16(float* out) {
  set_max_registers_up<240>();
  all_products<bf16, float>(out);
  products<bf16, float, 64, Major::mn, Major::mn>(out);
}
extern "C" __global__ void __launch_bounds__(128, 1) wgmma_f16(float* out) {
  set_max_registers_down<232>();
  all_products<f16, float, Major::k, Major::mn>(out);
}
extern "C" __global__ void __launch_bounds__(128, 1) wgmma_e4m3(float* out) {
  all_products<e4m3, float>(out);
}
extern "C" __global__ void __launch_bounds__(128, 1) wgmma_s8(int32_t* out) {
  all_products<int8_t, int32_t>(out);
}
extern "C" __global__ void __launch_bounds__(128, 1) wgmma_b1(int32_t* out) {
  all_products<b1, int32_t>(out);
}
