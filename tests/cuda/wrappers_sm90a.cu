// Every wrapper that exists on sm_90a only: the compile test looks for the instruction of each in
// the machine code.
#include "cuda/device.h"
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/wgmma.h"

using namespace taut;
using namespace taut::ptx;

template <class T, class D, int N, Major a_major = Major::k, Major b_major = Major::k>
__global__ void __launch_bounds__(128, 1) wgmma_products(D* out) {
  D d[N / 2];
  const uint8_t* shared = dynamic_shared();
  const uint64_t a = matrix_descriptor(shared, 16, 1024, Swizzle::bytes_128);
  const uint64_t b = matrix_descriptor(shared + 16384, 16, 1024, Swizzle::bytes_128);
  uint32_t registers[4] = {1, 2, 3, threadIdx.x};
  hold_registers(registers);
  wgmma_fence();
  wgmma_ss<T, a_major, b_major>(d, a, b, false);
  wgmma_commit();
  wgmma_wait<0>();
  hold_registers(d);
  wgmma_fence();
  wgmma_rs<T, b_major>(d, registers, b, true);
  wgmma_commit();
  wgmma_wait<0>();
  hold_registers(d);
  for (int i = 0; i < N / 2; ++i) out[i * 128 + threadIdx.x] = d[i];
}

template __global__ void wgmma_products<bf16, float, 8>(float*);
template __global__ void wgmma_products<bf16, float, 16>(float*);
template __global__ void wgmma_products<bf16, float, 32>(float*);
template __global__ void wgmma_products<bf16, float, 64>(float*);
template __global__ void wgmma_products<bf16, float, 96>(float*);
template __global__ void wgmma_products<bf16, float, 128>(float*);
template __global__ void wgmma_products<bf16, float, 192>(float*);
template __global__ void wgmma_products<bf16, float, 256>(float*);
template __global__ void wgmma_products<f16, float, 8>(float*);
template __global__ void wgmma_products<f16, float, 16>(float*);
template __global__ void wgmma_products<f16, float, 32>(float*);
template __global__ void wgmma_products<f16, float, 64>(float*);
template __global__ void wgmma_products<f16, float, 96>(float*);
template __global__ void wgmma_products<f16, float, 128>(float*);
template __global__ void wgmma_products<f16, float, 192>(float*);
template __global__ void wgmma_products<f16, float, 256>(float*);
template __global__ void wgmma_products<e4m3, float, 8>(float*);
template __global__ void wgmma_products<e4m3, float, 16>(float*);
template __global__ void wgmma_products<e4m3, float, 32>(float*);
template __global__ void wgmma_products<e4m3, float, 64>(float*);
template __global__ void wgmma_products<e4m3, float, 96>(float*);
template __global__ void wgmma_products<e4m3, float, 128>(float*);
template __global__ void wgmma_products<e4m3, float, 192>(float*);
template __global__ void wgmma_products<e4m3, float, 256>(float*);
template __global__ void wgmma_products<int8_t, int32_t, 8>(int32_t*);
template __global__ void wgmma_products<int8_t, int32_t, 16>(int32_t*);
template __global__ void wgmma_products<int8_t, int32_t, 32>(int32_t*);
template __global__ void wgmma_products<int8_t, int32_t, 64>(int32_t*);
template __global__ void wgmma_products<int8_t, int32_t, 96>(int32_t*);
template __global__ void wgmma_products<int8_t, int32_t, 128>(int32_t*);
template __global__ void wgmma_products<int8_t, int32_t, 192>(int32_t*);
template __global__ void wgmma_products<int8_t, int32_t, 256>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 8>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 16>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 32>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 64>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 96>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 128>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 192>(int32_t*);
template __global__ void wgmma_products<b1, int32_t, 256>(int32_t*);
template __global__ void wgmma_products<bf16, float, 64, Major::mn, Major::mn>(float*);
template __global__ void wgmma_products<f16, float, 64, Major::k, Major::mn>(float*);

extern "C" __global__ void __launch_bounds__(256, 1) register_budgets(float* out) {
  if (threadIdx.x < 128) {
    set_max_registers_down<40>();
    out[threadIdx.x] = 1;
  } else {
    set_max_registers_up<232>();
    out[threadIdx.x] = out[threadIdx.x + 256];
  }
}
