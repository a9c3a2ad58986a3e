// The example of simt.h.
#include "simt.h"

struct ScaleParams {
  const float* x;
  float* y;
  int size;
  float factor;
};

__global__ void __launch_bounds__(64) scale_kernel(const __grid_constant__ ScaleParams p) {
  float* staged = reinterpret_cast<float*>(taut::dynamic_shared());
  const int i = blockIdx.x * 64 + threadIdx.x;
  staged[threadIdx.x] = i < p.size ? p.x[i] : 0.0f;
  __syncthreads();
  if (i < p.size) p.y[i] = p.factor * staged[63 - threadIdx.x];
}

extern "C" const char* scale(const float* x, float* y, int size, float factor, int schedule,
                             uint64_t seed) {
  return simt::run([&] {
    simt::Launch launch{"scale", {unsigned(size + 63) / 64}, {64}, 64 * sizeof(float)};
    launch.schedule(schedule, seed).reads(x, size).writes(y, size);
    launch(scale_kernel, ScaleParams{x, y, size, factor});
  });
}
