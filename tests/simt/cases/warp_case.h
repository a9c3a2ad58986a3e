// One warp with 16 registers in and 16 out per lane, for the cases of warp-level wrappers.
#pragma once
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt.h"

namespace {

struct Params {
  const uint32_t* in;
  uint32_t* out;
};

constexpr int kWords = 32 * 16;  // per launch: up to 16 registers of each lane

void require(bool ok, const char* what, int lane, int i) {
  if (!ok)
    throw std::runtime_error(std::string(what) + ": lane " + std::to_string(lane) + ", register " +
                             std::to_string(i) + " is wrong");
}

std::vector<uint32_t> random_words(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> words(kWords);
  for (uint32_t& w : words) w = random();
  return words;
}

// Runs one warp; in and out hold register i of lane l at [16 l + i].
std::vector<uint32_t> run_warp(const char* name, void (*kernel)(Params),
                               const std::vector<uint32_t>& in, int schedule, uint64_t seed) {
  std::vector<uint32_t> out(kWords, 0xdeadbeef);
  simt::Launch launch{name, {1}, {32}, 2048};
  launch.schedule(schedule, seed).reads(in.data(), kWords).writes(out.data(), kWords);
  launch(kernel, Params{in.data(), out.data()});
  return out;
}

}  // namespace
