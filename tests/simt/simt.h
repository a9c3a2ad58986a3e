// The host SIMT executor: runs CUDA kernels, unchanged, on the CPU, and is hostile to them.
//
// A kernel, in csrc/cuda/<op>.cuh, for nvcc and g++ alike (no #ifdef, no inline assembly, shared
// memory only through dynamic_shared(), options as one struct):
//
//   #include "cuda/device.h"
//   struct ScaleParams { const float* x; float* y; int size; float factor; };
//   __global__ void __launch_bounds__(64) scale_kernel(const __grid_constant__ ScaleParams p) {
//     float* staged = reinterpret_cast<float*>(taut::dynamic_shared());
//     const int i = blockIdx.x * 64 + threadIdx.x;
//     staged[threadIdx.x] = i < p.size ? p.x[i] : 0.0f;
//     __syncthreads();
//     if (i < p.size) p.y[i] = p.factor * staged[63 - threadIdx.x];
//   }
//
// Its test, part one: tests/simt/cases/<case>.cpp, which build.load() compiles:
//
//   extern "C" const char* scale(const float* x, float* y, int size, float factor, int schedule,
//                                uint64_t seed) {
//     return simt::run([&] {
//       simt::Launch launch{"scale", {unsigned(size + 63) / 64}, {64}, 64 * sizeof(float)};
//       launch.schedule(schedule, seed).reads(x, size).writes(y, size);
//       launch(scale_kernel, ScaleParams{x, y, size, factor});
//     });
//   }
//
// Part two, tests/test_<x>.py (tensors go as pointers, ints with 64 bits, floats with 32):
//
//   from simt import build
//   @pytest.mark.parametrize("schedule", build.SCHEDULES)
//   def test_scale(schedule):
//     build.call(build.load("scale").scale, x, y, 100, 2.0, schedule, seed)
//
// build.call raises build.SimtError with the message of whatever the executor found: reads of
// shared memory nobody wrote or a copy has yet to deliver, races (in shared memory, and in writable
// global memory, between blocks too), missing proxy and wgmma fences, accumulators touched while
// they are in flight, accesses out of bounds, misaligned or to read-only buffers, divergent
// collectives, deadlocks, copies and products that nothing waits for.
//
// It does not see: memset, and memcpy of more than 16 bytes (copy by assignment); a scalar left
// uninitialized on some paths (arrays hold 0xFE...); writes just past a buffer that hit another
// buffer of the launch; blocks that wait for each other (they run one after the other); whether
// register budgets add up, bank conflicts, or anything else about speed. Order by atomics is
// believed where a block fenced
// (__threadfence) what another reads after an atomic. The approximate functions are exact, nothing
// is contracted to fma, and products are summed in double precision before they are rounded.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/device.h"
#include "cuda/ptx/tensor_map.h"

namespace simt {

// In which order blocks, warps and lanes run. A lane runs until it has to wait.
enum Schedule { forward = 0, reverse = 1, random = 2 };

// A range of global memory a launch may touch.
struct Buffer {
  const uint8_t* begin;
  const uint8_t* end;
  bool writable;
};

class Launch {
 public:
  Launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes)
      : kernel_(kernel), grid_(grid), block_(block), shared_bytes_(shared_bytes) {}

  Launch& schedule(int schedule, uint64_t seed) {
    schedule_ = static_cast<Schedule>(schedule);
    seed_ = seed;
    return *this;
  }
  // Which of the forms a kernel has for different GPUs runs, as __CUDA_ARCH__ says it.
  Launch& architecture(int architecture) {
    architecture_ = architecture;
    return *this;
  }
  // The memory behind a pointer, in elements; everything else is out of bounds.
  template <class T>
  Launch& reads(const T* pointer, size_t count) {
    return add(pointer, count * sizeof(T), false);
  }
  template <class T>
  Launch& writes(T* pointer, size_t count) {
    return add(pointer, count * sizeof(T), true);
  }

  template <class Params>
  void operator()(void (*kernel)(Params), const Params& params) {
    Call<Params> call{kernel, params};
    execute(Call<Params>::run, &call);
  }

 private:
  // Outside of the kernel, so not checked.
  template <class Params>
  struct Call {
    void (*kernel)(Params);
    const Params& params;
    __attribute__((no_sanitize("thread"))) static void run(void* call) {
      static_cast<Call*>(call)->kernel(static_cast<Call*>(call)->params);
    }
  };

  Launch& add(const void* pointer, size_t bytes, bool writable) {
    auto begin = static_cast<const uint8_t*>(pointer);
    if (bytes) buffers_.push_back({begin, begin + bytes, writable});
    return *this;
  }
  void execute(void (*thread)(void*), void* call);

  const char* kernel_;
  dim3 grid_, block_;
  size_t shared_bytes_;
  Schedule schedule_ = forward;
  uint64_t seed_ = 0;
  int architecture_ = 900;
  std::vector<Buffer> buffers_;
};

// Runs launches; null, or what went wrong, valid until the next call.
const char* run(const std::function<void()>& launches);

// The twin of cuTensorMapEncodeTiled: `sizes` and `box` in elements from the innermost dimension
// out, `strides` in bytes of the outer dimensions (rank - 1 of them, multiples of 16), swizzle 0 or
// 128 (the box's inner dimension is then at most 128 bytes).
taut::ptx::TensorMap encode_tensor_map(const void* base, int element_bytes, int rank,
                                       const uint64_t* sizes, const uint64_t* strides,
                                       const uint32_t* box, int swizzle);

}  // namespace simt
