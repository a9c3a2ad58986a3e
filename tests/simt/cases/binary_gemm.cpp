// Packed signs and 1-bit linear layers, as the launchers run them.
#include "attention_case.h"
#include "cuda/binary_gemm_launch.cuh"
#include "cuda/binary_wgmma_launch.cuh"

using taut::FloatType;

// Launches of as many blocks as asked for.
struct Grid {
  const Memory& memory;
  int64_t schedule;
  uint64_t seed;
  int architecture = 900;

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int64_t blocks, int threads,
                  int shared_bytes, const Params& params) const {
    simt::Launch launch{name,
                        {static_cast<unsigned>(blocks)},
                        {static_cast<unsigned>(threads)},
                        static_cast<size_t>(shared_bytes)};
    launch.schedule(static_cast<int>(schedule), seed).architecture(architecture);
    for (int i = 0; i < 16; ++i)
      launch.reads(static_cast<const uint8_t*>(memory.reads[i]), memory.read_bytes[i]);
    for (int i = 0; i < 8; ++i)
      launch.writes(static_cast<uint8_t*>(memory.writes[i]), memory.write_bytes[i]);
    launch(kernel, params);
  }
};

extern "C" const char* pack_bits(const taut::PackBitsParams* p, const Memory* memory, int64_t type,
                                 int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    taut::launch_pack_bits(*p, static_cast<FloatType>(type), Grid{*memory, schedule, seed});
  });
}

extern "C" const char* unpack_bits(const taut::UnpackBitsParams* p, const Memory* memory,
                                   int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_unpack_bits(*p, Grid{*memory, schedule, seed}); });
}

extern "C" const char* code_planes(const taut::CodePlanesParams* p, const Memory* memory,
                                   int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_code_planes(*p, Grid{*memory, schedule, seed}); });
}

extern "C" const char* binary_linear(const taut::BinaryLinearParams* p, const Memory* memory,
                                     int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_binary_linear(*p, Grid{*memory, schedule, seed}); });
}

// As on sm_80, by products of XOR.
extern "C" const char* binary_linear_xor(const taut::BinaryLinearParams* p, const Memory* memory,
                                         int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_binary_linear(*p, Grid{*memory, schedule, seed, 800}); });
}

extern "C" const char* binary_wgmma(const taut::BinaryLinearParams* p, const Memory* memory,
                                    int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_binary_wgmma(*p, Grid{*memory, schedule, seed}); });
}

extern "C" int64_t chosen_tiles(int64_t rows, int64_t out_features) {
  return static_cast<int64_t>(taut::choose_binary_tiles(rows, static_cast<int32_t>(out_features)));
}

extern "C" const char* binary_norm(const taut::BinaryNormParams* p, const Memory* memory,
                                   int64_t schedule, uint64_t seed) {
  return simt::run([&] { taut::launch_binary_norm(*p, Grid{*memory, schedule, seed}); });
}
