// How the cases of attention launch their kernels.
#pragma once
#include <cstdint>

#include "simt.h"

namespace {

// Few blocks, so that each takes several units.
constexpr unsigned kBlocks = 3;

// What a call may touch, by launch.
struct Memory {
  const void* reads[16];
  int64_t read_bytes[16];
  void* writes[8];
  int64_t write_bytes[8];
};

struct Executor {
  const Memory& memory;
  int schedule;
  uint64_t seed;

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int threads, int shared_bytes,
                  int64_t units, const Params& params) const {
    if (units == 0) units = 1;
    simt::Launch launch{name,
                        {static_cast<unsigned>(units < kBlocks ? units : kBlocks)},
                        {static_cast<unsigned>(threads)},
                        static_cast<size_t>(shared_bytes)};
    launch.schedule(schedule, seed);
    for (int i = 0; i < 16; ++i)
      launch.reads(static_cast<const uint8_t*>(memory.reads[i]), memory.read_bytes[i]);
    for (int i = 0; i < 8; ++i)
      launch.writes(static_cast<uint8_t*>(memory.writes[i]), memory.write_bytes[i]);
    launch(kernel, params);
  }
};

// The twin of csrc/cuda/encode_tensor_map.h.
[[maybe_unused]] bool encode_map(taut::ptx::TensorMap& map, const void* data, const uint64_t* sizes,
                                 const uint64_t* strides, const uint32_t* box) {
  map = simt::encode_tensor_map(data, 2, 3, sizes, strides, box, 128);
  return true;
}

}  // namespace
