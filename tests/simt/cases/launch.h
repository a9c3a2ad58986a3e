// Runs what a <stem>_launch.cuh launches. `Memory` is tests/simt/memory.py's.
#pragma once
#include "simt.h"

// What a call may touch.
struct Memory {
  const void* reads[16];
  int64_t read_bytes[16];
  void* writes[8];
  int64_t write_bytes[8];
};

struct Executor {
  const Memory& memory;
  int64_t schedule;
  uint64_t seed;
  int64_t most_blocks = 1 << 16;  // few, for blocks to take several units each

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int threads, int shared_bytes,
                  int64_t blocks, const Params& params) const {
    const int64_t chosen = blocks < 1 ? 1 : blocks < most_blocks ? blocks : most_blocks;
    simt::Launch launch{name,
                        {static_cast<unsigned>(chosen)},
                        {static_cast<unsigned>(threads)},
                        static_cast<size_t>(shared_bytes)};
    launch.schedule(static_cast<int>(schedule), seed);
    for (int i = 0; i < 16; ++i)
      launch.reads(static_cast<const uint8_t*>(memory.reads[i]), memory.read_bytes[i]);
    for (int i = 0; i < 8; ++i)
      launch.writes(static_cast<uint8_t*>(memory.writes[i]), memory.write_bytes[i]);
    launch(kernel, params);
  }
};
