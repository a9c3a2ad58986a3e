// Every wrapper that exists from sm_80 on, in a kernel of its own: the compile test looks for the
// instruction of each in the machine code.
#include "cuda/device.h"
#include "cuda/ptx/address.h"
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/bits.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/swizzle.h"

using namespace taut;
using namespace taut::ptx;

extern "C" __global__ void ldmatrix_all(uint32_t* out) {
  uint32_t r1, t1, r2[2], t2[2], r4[4], t4[4];
  const uint8_t* row = dynamic_shared() + threadIdx.x * 16;
  ldmatrix_x1(r1, row);
  ldmatrix_x1_trans(t1, row);
  ldmatrix_x2(r2, row);
  ldmatrix_x2_trans(t2, row);
  ldmatrix_x4(r4, row);
  ldmatrix_x4_trans(t4, row);
  out[threadIdx.x] = r1 + t1 + r2[0] + r2[1] + t2[0] + t2[1] + r4[0] + r4[1] + r4[2] + r4[3] +
                     t4[0] + t4[1] + t4[2] + t4[3];
}

extern "C" __global__ void mma_bf16(float* d, const uint32_t* a, const uint32_t* b) {
  mma_m16n8k16<bf16>(*reinterpret_cast<float (*)[4]>(d),
                     *reinterpret_cast<const uint32_t (*)[4]>(a),
                     *reinterpret_cast<const uint32_t (*)[2]>(b));
}

extern "C" __global__ void mma_f16(float* d, const uint32_t* a, const uint32_t* b) {
  mma_m16n8k16<f16>(*reinterpret_cast<float (*)[4]>(d), *reinterpret_cast<const uint32_t (*)[4]>(a),
                    *reinterpret_cast<const uint32_t (*)[2]>(b));
}

extern "C" __global__ void mma_tf32(float* d, const float* a, const float* b) {
  const uint32_t ra[4] = {to_tf32(a[0]), to_tf32(a[1]), to_tf32(a[2]), to_tf32(a[3])};
  const uint32_t rb[2] = {to_tf32(b[0]), to_tf32(b[1])};
  mma_m16n8k8_tf32(*reinterpret_cast<float (*)[4]>(d), ra, rb);
}

extern "C" __global__ void mma_s8(int32_t* d, const uint32_t* a, const uint32_t* b) {
  mma_m16n8k32_s8(*reinterpret_cast<int32_t (*)[4]>(d), *reinterpret_cast<const uint32_t (*)[4]>(a),
                  *reinterpret_cast<const uint32_t (*)[2]>(b));
}

extern "C" __global__ void mma_b1_and(int32_t* d, const uint32_t* a, const uint32_t* b) {
  auto& sum = *reinterpret_cast<int32_t (*)[4]>(d);
  mma_m16n8k128_and(sum, *reinterpret_cast<const uint32_t (*)[2]>(a), b[0]);
  mma_m16n8k256_and(sum, *reinterpret_cast<const uint32_t (*)[4]>(a),
                    *reinterpret_cast<const uint32_t (*)[2]>(b));
}

extern "C" __global__ void mma_b1_xor(int32_t* d, const uint32_t* a, const uint32_t* b) {
  auto& sum = *reinterpret_cast<int32_t (*)[4]>(d);
  mma_m16n8k128_xor(sum, *reinterpret_cast<const uint32_t (*)[2]>(a), b[0]);
  mma_m16n8k256_xor(sum, *reinterpret_cast<const uint32_t (*)[4]>(a),
                    *reinterpret_cast<const uint32_t (*)[2]>(b));
}

extern "C" __global__ void cp_async_all(const uint8_t* source, uint32_t* out, int bytes) {
  uint8_t* shared = dynamic_shared();
  cp_async<16>(shared + threadIdx.x * 16, source + threadIdx.x * 16, bytes);
  cp_async_commit();
  cp_async<8>(shared + 4096 + threadIdx.x * 8, source + threadIdx.x * 8);
  cp_async<4>(shared + 8192 + threadIdx.x * 4, source + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<1>();
  cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = shared[swizzle_128(255 - threadIdx.x)];
}

extern "C" __global__ void named_barriers(int* out) {
  if (threadIdx.x < 32) {
    barrier_arrive(1, 64);
  } else {
    barrier_sync(1, 64);
  }
  barrier_sync(2, 64);
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, out[threadIdx.x], 1) +
                     __any_sync(0xffffffffu, out[0] > 0) + __ballot_sync(0xffffffffu, out[1] > 0);
}

extern "C" __global__ void conversions(const float* x, uint32_t* out, float* y) {
  out[0] = pack<bf16>(x[0], x[1]);
  out[1] = pack<f16>(x[2], x[3]);
  out[2] = from_float<bf16>(x[4]).bits + from_float<f16>(x[5]).bits;
  y[0] = low_of<bf16>(out[3]) + high_of<bf16>(out[3]) + low_of<f16>(out[4]) + high_of<f16>(out[4]);
  y[2] = max_nan(x[10], x[11]);
  y[1] = exp2_approx(x[6]) + log2_approx(x[7]) + tanh_approx(x[8]) + reciprocal_approx(x[9]);
}

extern "C" __global__ void bit_functions(uint32_t* x) {
  x[0] = lop3<(0xF0 & 0xCC) | 0xAA>(x[1], x[2], x[3]);
}
