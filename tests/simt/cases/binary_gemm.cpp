// Packed signs and 1-bit linear layers, as the launchers run them.
#include "cuda/binary_gemm_launch.cuh"
#include "launch.h"

using taut::FloatType;

struct Grid {
  Executor run;

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int64_t blocks, int threads,
                  int shared_bytes, const Params& params) const {
    run(name, kernel, threads, shared_bytes, blocks, params);
  }
};

extern "C" const char* pack_bits(const taut::PackBitsParams* p, const Memory* memory, int64_t type,
                                 int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    taut::launch_pack_bits(*p, static_cast<FloatType>(type), Grid{{*memory, schedule, seed}});
  });
}

extern "C" const char* unpack_bits(const taut::UnpackBitsParams* p, const Memory* memory,
                                   int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_unpack_bits(*p, Grid{{*memory, schedule, seed}}); });
}

extern "C" const char* code_planes(const taut::CodePlanesParams* p, const Memory* memory,
                                   int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_code_planes(*p, Grid{{*memory, schedule, seed}}); });
}

extern "C" const char* binary_linear(const taut::BinaryLinearParams* p, const Memory* memory,
                                     int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_binary_linear(*p, Grid{{*memory, schedule, seed}}); });
}

extern "C" const char* binary_norm(const taut::BinaryNormParams* p, const Memory* memory,
                                   int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_binary_norm(*p, Grid{{*memory, schedule, seed}}); });
}
