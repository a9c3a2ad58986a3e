// How fast a GPU multiplies bits: mma.sync and, on Hopper, wgmma from shared memory and registers;
// and products whose signs are packed by one funnel shift each, the inner loop of binary attention.
// Writes JSON. Needs sm_90a:
//
//     nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Icsrc bench/probe_binary_sm90a.cu
//     \
//       -o build/probe_binary && build/probe_binary
#include <cstdio>
#include <cstdlib>

#include "cuda/device.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/wgmma.h"

namespace taut {
namespace {

constexpr int kThreads = 128, kRounds = 2048, kChains = 8;
constexpr int kTileBytes = 128 * 128;  // rows of 1024 bits, and as many columns

// Keeps the compiler from dropping what led to x.
__device__ __forceinline__ void use(int32_t x, int32_t* out) {
  if (x == -1) out[threadIdx.x] = x;
}

__global__ void __launch_bounds__(kThreads) bmma_k128_kernel(int32_t* out) {
  const uint32_t a[2] = {threadIdx.x, ~threadIdx.x};
  int32_t d[kChains][4] = {}, sum = 0;
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) ptx::mma_m16n8k128_and(d[i], a, threadIdx.x + i);
  }
  for (int i = 0; i < 4 * kChains; ++i) sum += d[i / 4][i % 4];
  use(sum, out);
}

__global__ void __launch_bounds__(kThreads) bmma_k256_kernel(int32_t* out) {
  const uint32_t a[4] = {threadIdx.x, ~threadIdx.x, threadIdx.x * 3, threadIdx.x * 5};
  int32_t d[kChains][4] = {}, sum = 0;
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      const uint32_t b[2] = {threadIdx.x + i, threadIdx.x - i};
      ptx::mma_m16n8k256_and(d[i], a, b);
    }
  }
  for (int i = 0; i < 4 * kChains; ++i) sum += d[i / 4][i % 4];
  use(sum, out);
}

// 16 products of k128, one shift for each of the 64 numbers they leave in a thread, and the 5
// products of k256 that the two words so packed take with values.
__global__ void __launch_bounds__(kThreads) shift_coupled_kernel(int32_t* out) {
  const uint32_t q[2] = {threadIdx.x, ~threadIdx.x};
  // Four registers that the compiler knows nothing of.
  int32_t start[4], context[5][4] = {}, sum = 0;
  for (int i = 0; i < 4; ++i) start[i] = out[i];
  uint32_t words[4] = {};
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        int32_t d[4];
        ptx::mma_m16n8k128_and(d, q, threadIdx.x + 8 * half + n, start);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          words[2 * half + i / 2] = __funnelshift_l(d[i], words[2 * half + i / 2], 1);
      }
    }
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      const uint32_t b[2] = {threadIdx.x + i, threadIdx.x - i};
      ptx::mma_m16n8k256_and(context[i], words, b);
    }
  }
  for (int i = 0; i < 20; ++i) sum += context[i / 4][i % 4];
  use(sum, out);
}

__device__ __forceinline__ uint64_t tile_descriptor(const uint8_t* tile, int step) {
  return ptx::matrix_descriptor(tile + step * 32, 16, 1024, ptx::Swizzle::bytes_128);
}

template <bool kRegisters>
__global__ void __launch_bounds__(kThreads) bgmma_kernel(int32_t* out) {
  uint8_t* rows = dynamic_shared();
  uint8_t* columns = rows + kTileBytes;
  for (int i = threadIdx.x; i < 2 * kTileBytes / 4; i += kThreads)
    reinterpret_cast<uint32_t*>(rows)[i] = i;
  ptx::fence_async_shared();
  __syncthreads();
  const uint32_t a[4] = {threadIdx.x, ~threadIdx.x, threadIdx.x * 3, threadIdx.x * 5};
  int32_t d[64] = {}, sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      if constexpr (kRegisters) {
        ptx::wgmma_rs<ptx::b1>(d, a, tile_descriptor(columns, step), true);
      } else {
        ptx::wgmma_ss<ptx::b1>(d, tile_descriptor(rows, step), tile_descriptor(columns, step),
                               true);
      }
    }
    ptx::wgmma_commit();
  }
  ptx::wgmma_wait<0>();
  ptx::hold_registers(d);
  for (int i = 0; i < 64; ++i) sum += d[i];
  use(sum, out);
}

void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "probe_binary: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// The least of 7 runs, in seconds; every multiprocessor has `blocks` blocks.
double seconds(void (*kernel)(int32_t*), int multiprocessors, int blocks, int shared,
               int32_t* out) {
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin));
  must(cudaEventCreate(&end));
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  float best = 1e30f;
  for (int run = 0; run < 7; ++run) {
    must(cudaEventRecord(begin));
    kernel<<<multiprocessors * blocks, kThreads, shared>>>(out);
    must(cudaEventRecord(end));
    must(cudaEventSynchronize(end));
    float milliseconds = 0;
    must(cudaEventElapsedTime(&milliseconds, begin, end));
    best = milliseconds < best ? milliseconds : best;
  }
  return best * 1e-3;
}

}  // namespace
}  // namespace taut

int main() {
  using namespace taut;
  cudaDeviceProp device;
  must(cudaGetDeviceProperties(&device, 0));
  int32_t* out = nullptr;
  must(cudaMalloc(&out, kThreads * sizeof(int32_t)));
  must(cudaMemset(out, 0, kThreads * sizeof(int32_t)));
  constexpr int kWarps = kThreads / 32, kBlocks = 4;
  struct Probe {
    const char* name;
    void (*kernel)(int32_t*);
    int blocks, shared;
    double operations, scores;  // of a block and round: 2 per product of bits
  };
  constexpr double kOf128 = 2.0 * 16 * 8 * 128, kOf256 = 2 * kOf128;
  constexpr double kOfGroup = 4 * 2.0 * 64 * 128 * 256;
  const Probe probes[] = {
      {"bmma_k128", bmma_k128_kernel, kBlocks, 0, kWarps * kChains * kOf128, 0},
      {"bmma_k256", bmma_k256_kernel, kBlocks, 0, kWarps * kChains * kOf256, 0},
      {"shift_coupled", shift_coupled_kernel, kBlocks, 0, kWarps * (16 * kOf128 + 5 * kOf256),
       kWarps * 16.0 * 16 * 8},
      {"bgmma_ss", bgmma_kernel<false>, 2, 2 * kTileBytes, kOfGroup, 0},
      {"bgmma_rs", bgmma_kernel<true>, 2, 2 * kTileBytes, kOfGroup, 0},
  };
  std::printf("{\"device\": \"%s\", \"multiprocessors\": %d, \"probes\": [", device.name,
              device.multiProcessorCount);
  const char* separator = "";
  for (const Probe& p : probes) {
    const double time = seconds(p.kernel, device.multiProcessorCount, p.blocks, p.shared, out);
    const double rounds = double{kRounds} * p.blocks * device.multiProcessorCount / time;
    std::printf("%s\n  {\"name\": \"%s\", \"tops\": %.1f, \"gscores\": %.1f}", separator, p.name,
                rounds * p.operations * 1e-12, rounds * p.scores * 1e-9);
    separator = ",";
  }
  std::printf("\n]}\n");
  must(cudaFree(out));
}
