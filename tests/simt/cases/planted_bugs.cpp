// Kernels with one bug each, chosen by `bug`, that the executor must find; without it they pass.
#include <stdexcept>
#include <string>

#include "cuda/ptx/barrier.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/ldmatrix.h"
#include "simt.h"

using namespace taut;
using namespace taut::ptx;

namespace {

constexpr int kThreads = 64;
constexpr int kSize = 2 * kThreads;

struct Params {
  const float* in;
  float* out;
  int* counter;
  bool bug;
};

float* shared_floats() { return reinterpret_cast<float*>(dynamic_shared()); }

__global__ void missing_syncthreads(const Params p) {
  shared_floats()[threadIdx.x] = p.in[threadIdx.x];
  if (!p.bug) __syncthreads();
  p.out[threadIdx.x] = shared_floats()[kThreads - 1 - threadIdx.x];
}

__global__ void missing_syncwarp(const Params p) {
  shared_floats()[threadIdx.x] = p.in[threadIdx.x];
  if (!p.bug) __syncwarp();
  p.out[threadIdx.x] = shared_floats()[threadIdx.x ^ 1];
}

// The tile is overwritten while a slower warp may still read it.
__global__ void overwritten_early(const Params p) {
  float sum = 0;
  for (int tile = 0; tile < 2; ++tile) {
    shared_floats()[threadIdx.x] = p.in[tile * kThreads + threadIdx.x];
    __syncthreads();
    sum += shared_floats()[kThreads - 1 - threadIdx.x];
    if (!p.bug) __syncthreads();
  }
  p.out[threadIdx.x] = sum;
}

__global__ void missing_copy_wait(const Params p) {
  cp_async<4>(shared_floats() + threadIdx.x, p.in + threadIdx.x);
  cp_async_commit();
  if (!p.bug) cp_async_wait<0>();
  __syncthreads();
  p.out[threadIdx.x] = shared_floats()[threadIdx.x];
  cp_async_wait<0>();
}

// Waits for the older group only.
__global__ void copy_wait_too_small(const Params p) {
  for (int group = 0; group < 2; ++group) {
    cp_async<4>(shared_floats() + group * kThreads + threadIdx.x,
                p.in + group * kThreads + threadIdx.x);
    cp_async_commit();
  }
  if (p.bug)
    cp_async_wait<1>();
  else
    cp_async_wait<0>();
  p.out[threadIdx.x] = shared_floats()[kThreads + threadIdx.x];
}

__global__ void copy_without_barrier(const Params p) {
  cp_async<4>(shared_floats() + threadIdx.x, p.in + threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  if (!p.bug) __syncthreads();
  p.out[threadIdx.x] = shared_floats()[threadIdx.x ^ 32];
}

// The next copy starts before all have read what it overwrites.
__global__ void copy_over_readers(const Params p) {
  float sum = 0;
  for (int tile = 0; tile < 2; ++tile) {
    cp_async<4>(shared_floats() + threadIdx.x, p.in + tile * kThreads + threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    sum += shared_floats()[threadIdx.x ^ 32];
    if (!p.bug) __syncthreads();
  }
  p.out[threadIdx.x] = sum;
}

__global__ void global_out_of_bounds(const Params p) {
  p.out[threadIdx.x + (p.bug ? kSize - kThreads + 1 : 0)] = p.in[threadIdx.x];
}

__global__ void shared_out_of_bounds(const Params p) {
  shared_floats()[threadIdx.x + (p.bug ? kSize - kThreads + 1 : 0)] = p.in[threadIdx.x];
}

// Reading past the end is allowed only with a source size of 0.
__global__ void copy_out_of_bounds(const Params p) {
  if (threadIdx.x == 0) cp_async<16>(shared_floats(), p.in + kSize, p.bug ? 16 : 0);
  cp_async_commit();
  cp_async_wait<0>();
}

__global__ void misaligned(const Params p) {
  const auto four = reinterpret_cast<const float4*>(p.in + (p.bug ? 1 : 0))[threadIdx.x / 4];
  p.out[threadIdx.x] = four.x + four.y + four.z + four.w;
}

__global__ void misaligned_row(const Params p) {
  shared_floats()[threadIdx.x] = 0;
  shared_floats()[kThreads + threadIdx.x] = 0;
  __syncthreads();
  uint32_t r;
  ldmatrix_x1(r, dynamic_shared() + threadIdx.x % 8 * 16 + (p.bug ? 8 : 0));
  p.out[threadIdx.x] = r;
}

__global__ void read_only(const Params p) {
  if (p.bug) const_cast<float*>(p.in)[threadIdx.x] = 0;
  p.out[threadIdx.x] = p.in[threadIdx.x];
}

__global__ void never_written(const Params p) {
  if (!p.bug || threadIdx.x != 17) shared_floats()[threadIdx.x] = p.in[threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = shared_floats()[threadIdx.x ^ 1];
}

__global__ void divergent_shuffle(const Params p) {
  float x = p.in[threadIdx.x];
  if (!p.bug || threadIdx.x % 32 < 16) x += __shfl_xor_sync(0xffffffffu, x, 1);
  p.out[threadIdx.x] = x;
}

__global__ void divergent_barrier(const Params p) {
  if (!p.bug || threadIdx.x % 32 < 16) __syncthreads();
  p.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, p.in[threadIdx.x], 1);
}

__global__ void warp_misses_barrier(const Params p) {
  if (!p.bug || threadIdx.x < 32) __syncthreads();
  p.out[threadIdx.x] = p.in[threadIdx.x];
}

__global__ void crossed_barriers(const Params p) {
  const int own = 1 + threadIdx.x / 32;
  barrier_sync(p.bug ? own : 1, 64);
  barrier_sync(p.bug ? 3 - own : 2, 64);
  p.out[threadIdx.x] = p.in[threadIdx.x];
}

__global__ void other_count(const Params p) {
  if (threadIdx.x < 32)
    barrier_arrive(1, 64);
  else
    barrier_sync(1, p.bug ? 96 : 64);
  p.out[threadIdx.x] = p.in[threadIdx.x];
}

// Two blocks write the same element.
__global__ void blocks_collide(const Params p) {
  p.out[p.bug ? threadIdx.x : blockIdx.x * kThreads + threadIdx.x] = p.in[threadIdx.x];
}

// The last block adds what all blocks wrote: it must see their fences.
__global__ void last_block(const Params p) {
  p.out[blockIdx.x * kThreads + threadIdx.x] = p.in[threadIdx.x];
  if (!p.bug) __threadfence();
  __syncthreads();
  int* last = reinterpret_cast<int*>(dynamic_shared());
  if (threadIdx.x == 0) *last = atomicAdd(p.counter, 1) == int(gridDim.x) - 1;
  __syncthreads();
  if (*last) p.out[threadIdx.x] += p.out[kThreads + threadIdx.x];
}

__global__ void unfinished_sum(const Params p) {
  float sums[4];
  for (int i = p.bug; i < 4; ++i) sums[i] = 0;
  for (int i = 0; i < 4; ++i) sums[i] += p.in[threadIdx.x];
  p.out[threadIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
}

__global__ void plain_beside_atomic(const Params p) {
  if (p.bug && threadIdx.x == 5)
    *p.counter = 3;
  else
    atomicAdd(p.counter, 1);
}

// Each block waits for the other to arrive.
__global__ void blocks_wait(const Params p) {
  if (threadIdx.x != 0) return;
  atomicAdd(p.counter, 1);
  while (p.bug && atomicAdd(p.counter, 0) < 2) {}
}

struct Bug {
  const char* name;
  void (*kernel)(Params);
};
constexpr Bug kBugs[] = {
    {"missing_syncthreads", missing_syncthreads},
    {"missing_syncwarp", missing_syncwarp},
    {"overwritten_early", overwritten_early},
    {"missing_copy_wait", missing_copy_wait},
    {"copy_wait_too_small", copy_wait_too_small},
    {"copy_without_barrier", copy_without_barrier},
    {"copy_over_readers", copy_over_readers},
    {"global_out_of_bounds", global_out_of_bounds},
    {"shared_out_of_bounds", shared_out_of_bounds},
    {"copy_out_of_bounds", copy_out_of_bounds},
    {"misaligned", misaligned},
    {"misaligned_row", misaligned_row},
    {"read_only", read_only},
    {"never_written", never_written},
    {"divergent_shuffle", divergent_shuffle},
    {"divergent_barrier", divergent_barrier},
    {"warp_misses_barrier", warp_misses_barrier},
    {"crossed_barriers", crossed_barriers},
    {"other_count", other_count},
    {"blocks_collide", blocks_collide},
    {"last_block", last_block},
    {"blocks_wait", blocks_wait},
    {"unfinished_sum", unfinished_sum},
    {"plain_beside_atomic", plain_beside_atomic},
};

}  // namespace

// Runs kernel `name` on 2 blocks; in and out have kSize elements.
extern "C" const char* planted_bug(const char* name, bool bug, const float* in, float* out,
                                   int* counter, int schedule, uint64_t seed) {
  return simt::run([&] {
    for (const Bug& b : kBugs) {
      if (std::string(b.name) != name) continue;
      const bool one_block =
          b.kernel != blocks_collide && b.kernel != last_block && b.kernel != blocks_wait;
      simt::Launch launch{name, {one_block ? 1u : 2u}, {kThreads}, kSize * sizeof(float)};
      launch.schedule(schedule, seed).reads(in, kSize).writes(out, kSize).writes(counter, 1);
      launch(b.kernel, Params{in, out, counter, bug});
      return;
    }
    throw std::runtime_error("no such kernel");
  });
}
