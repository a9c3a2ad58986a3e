// Wrappers that stay in registers, on fresh random data: shuffles and votes against the manual's
// rules, conversions against the formats' definitions, approximate and bit functions.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/ptx/bits.h"
#include "cuda/ptx/convert.h"
#include "warp_case.h"

using namespace taut;
using namespace taut::ptx;

namespace {

// ---- shuffles and votes

__global__ void shuffle_kernel(const Params p) {
  const uint32_t* in = p.in + threadIdx.x * 16;
  uint32_t* out = p.out + threadIdx.x * 16;
  const int lane = threadIdx.x;
  out[0] = __shfl_sync(~0u, in[0], in[1]);
  out[1] = __shfl_sync(~0u, in[0], 5, 8);
  out[2] = __shfl_up_sync(~0u, in[0], 3);
  out[3] = __shfl_down_sync(~0u, in[0], 3, 16);
  out[4] = __shfl_xor_sync(~0u, in[0], 9);
  out[5] = __shfl_xor_sync(~0u, in[0], 12, 8);
  out[6] = __ballot_sync(~0u, in[2] & 1);
  out[7] = __any_sync(~0u, lane == int(in[16 * 0 + 3] % 32) && false);
  out[8] = __all_sync(~0u, lane >= 0);
  if (lane % 3 == 0) out[9] = __ballot_sync(0x49249249, in[2] & 2);
  out[10] = __float_as_uint(__shfl_up_sync(~0u, __uint_as_float(in[0] & 0x3fffffff), 1, 4));
}

void check_shuffles(int schedule, uint64_t seed) {
  const auto in = random_words(seed);
  const auto out = run_warp("shuffle", shuffle_kernel, in, schedule, seed);
  const auto x = [&](int lane) { return in[lane * 16]; };
  uint32_t votes = 0, thirds = 0;
  for (int lane = 0; lane < 32; ++lane) {
    votes |= (in[lane * 16 + 2] & 1) << lane;
    if (lane % 3 == 0) thirds |= (in[lane * 16 + 2] >> 1 & 1) << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* r = &out[lane * 16];
    require(r[0] == x(in[lane * 16 + 1] % 32), "__shfl_sync", lane, 0);
    require(r[1] == x(lane / 8 * 8 + 5), "__shfl_sync of 8", lane, 1);
    require(r[2] == x(lane < 3 ? lane : lane - 3), "__shfl_up_sync", lane, 2);
    require(r[3] == x(lane % 16 + 3 > 15 ? lane : lane + 3), "__shfl_down_sync", lane, 3);
    require(r[4] == x(lane ^ 9), "__shfl_xor_sync", lane, 4);
    // A lane beyond the segment's end gives the own value, one in an earlier segment its value.
    require(r[5] == x((lane ^ 12) > lane / 8 * 8 + 7 ? lane : lane ^ 12), "__shfl_xor_sync of 8",
            lane, 5);
    require(r[6] == votes, "__ballot_sync", lane, 6);
    require(r[7] == 0, "__any_sync", lane, 7);
    require(r[8] == 1, "__all_sync", lane, 8);
    if (lane % 3 == 0) require(r[9] == thirds, "__ballot_sync of a part", lane, 9);
    require(r[10] == (x(lane % 4 ? lane - 1 : lane) & 0x3fffffff), "__shfl_up_sync of a float",
            lane, 10);
  }
}

// ---- conversions and bit functions

__global__ void conversion_kernel(const Params p) {
  const uint32_t* in = p.in + threadIdx.x * 16;
  uint32_t* out = p.out + threadIdx.x * 16;
  const float low = __uint_as_float(in[0]), high = __uint_as_float(in[1]);
  out[0] = pack<bf16>(low, high);
  out[1] = pack<f16>(low, high);
  out[2] = __float_as_uint(low_of<f16>(in[2] & 0xbfffbfff));
  out[3] = __float_as_uint(high_of<f16>(in[2] & 0xbfffbfff));
  out[4] = __float_as_uint(high_of<bf16>(in[2]));
  out[5] = to_tf32(low);
  out[6] = lop3<0x96>(in[0], in[1], in[2]);
  out[7] = lop3<(0xF0 & 0xCC) | (0xAA & ~0xF0)>(in[0], in[1], in[2]);
  out[8] = from_float<bf16>(low).bits;
  out[9] = from_float<f16>(low).bits;
  out[10] = __float_as_uint(from_float<float>(low));
  out[11] = opaque(static_cast<int>(in[2]));
  out[12] = __float_as_uint(opaque(low));
  out[13] = *opaque(in + 3);
  const float first = max_nan(low, NAN), second = max_nan(NAN, high);
  out[14] = __float_as_uint(max_nan(low, high));
  out[15] = (first != first) + (second != second);
}

float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// The nearest number with `mantissa` bits of mantissa and exponents from `least` on.
double rounded(double x, int mantissa, int least) {
  int exponent;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - 1, least) - mantissa);
  return std::nearbyint(x / unit) * unit;
}

// 1 sign, 5 exponent (bias 15), 10 mantissa bits, no infinities or NaN.
double f16_value(uint32_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double x =
      exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return bits & 0x8000 ? -x : x;
}

void check_conversions(int schedule, uint64_t seed) {
  auto in = random_words(seed);
  // Floats that f16 can hold, some as subnormals: exponents from 2^-27 to 2^15.
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 2; ++i) {
      uint32_t& x = in[lane * 16 + i];
      x = (x & 0x807fffff) | (100 + (x >> 23) % 42) << 23;
    }
  const auto out = run_warp("conversions", conversion_kernel, in, schedule, seed);
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t *x = &in[lane * 16], *r = &out[lane * 16];
    for (int half = 0; half < 2; ++half) {
      const double value = float_of(x[half]);
      const double as_bf16 = float_of(r[0] >> 16 * half << 16);
      require(as_bf16 == rounded(value, 7, -126), "pack<bf16>", lane, half);
      require(f16_value(r[1] >> 16 * half & 0xffff) == rounded(value, 10, -14), "pack<f16>", lane,
              half);
      const uint32_t bits = (x[2] & 0xbfffbfff) >> 16 * half & 0xffff;
      require(float_of(r[2 + half]) == f16_value(bits), "f16 to float", lane, half);
    }
    require(r[4] == (x[2] & 0xffff0000), "bf16 to float", lane, 4);
    const double value = float_of(x[0]), tf32 = float_of(r[5]);
    require((r[5] & 0x1fff) == 0 && std::abs(tf32 - value) <= std::abs(value) * 0x1p-11, "to_tf32",
            lane, 5);
    require(r[6] == (x[0] ^ x[1] ^ x[2]), "lop3", lane, 6);
    require(r[7] == ((x[0] & x[1]) | (x[2] & ~x[0])), "lop3", lane, 7);
    require(float_of(r[14]) == std::max(float_of(x[0]), float_of(x[1])), "max_nan", lane, 14);
    require(r[15] == 2, "max_nan", lane, 15);
    require(r[8] == (r[0] & 0xffff), "from_float<bf16>", lane, 8);
    require(r[9] == (r[1] & 0xffff), "from_float<f16>", lane, 9);
    require(r[10] == x[0], "from_float<float>", lane, 10);
    require(r[11] == x[2] && r[12] == x[0] && r[13] == x[3], "opaque", lane, 11);
  }
}

// ---- approximate functions: the errors that the PTX ISA allows, special values exactly

constexpr float kInf = __builtin_huge_valf(), kNan = __builtin_nanf("");
constexpr float kSpecial[8] = {0.0f, -0.0f, kInf, -kInf, kNan, 1.0f, 0x1p-140f, -0x1p-140f};

__global__ void function_kernel(const Params p) {
  const uint32_t* in = p.in + threadIdx.x * 16;
  uint32_t* out = p.out + threadIdx.x * 16;
  for (int i = 0; i < 2; ++i) {
    const float x = __uint_as_float(in[i]);
    out[4 * i] = __float_as_uint(exp2_approx(x));
    out[4 * i + 1] = __float_as_uint(log2_approx(x));
    out[4 * i + 2] = __float_as_uint(tanh_approx(x));
    out[4 * i + 3] = __float_as_uint(reciprocal_approx(x));
  }
}

bool same(float got, float want) {
  return std::isnan(want) ? std::isnan(got)
                          : got == want && std::signbit(got) == std::signbit(want);
}

void check_functions(int schedule, uint64_t seed) {
  auto in = random_words(seed);
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t& x = in[lane * 16];  // of exponents from 2^-20 to 2^5, either sign: 2^x is normal
    x = (x & 0x807fffff) | (107 + (x >> 23) % 26) << 23;
    std::memcpy(&in[lane * 16 + 1], &kSpecial[lane % 8], 4);
  }
  const auto out = run_warp("functions", function_kernel, in, schedule, seed);
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* r = &out[lane * 16];
    const double x = float_of(in[lane * 16]), bound = 0x1p-22;
    const double exp2 = std::exp2(x), log2 = std::log2(x), tanh = std::tanh(x);
    require(std::abs(float_of(r[0]) - exp2) <= bound * exp2, "exp2_approx", lane, 0);
    if (x < 0) {
      require(std::isnan(float_of(r[1])), "log2_approx of a negative number", lane, 1);
    } else {
      const double allowed = x > 0.5 && x < 2 ? bound : bound * std::abs(log2);
      require(std::abs(float_of(r[1]) - log2) <= allowed, "log2_approx", lane, 1);
    }
    require(std::abs(float_of(r[2]) - tanh) <= 0x1p-10 * std::abs(tanh), "tanh_approx", lane, 2);
    require(std::abs(float_of(r[3]) - 1 / x) <= 0x1p-23 * std::abs(1 / x), "reciprocal_approx",
            lane, 3);
    const float wanted[8][4] = {{1, -kInf, 0.0f, kInf},
                                {1, -kInf, -0.0f, -kInf},
                                {kInf, kInf, 1, 0.0f},
                                {0, kNan, -1, -0.0f},
                                {kNan, kNan, kNan, kNan},
                                {2, 0, float_of(r[6]), 1},
                                {1, -kInf, float_of(r[6]), kInf},
                                {1, -kInf, float_of(r[6]), -kInf}};
    for (int i = 0; i < 4; ++i)
      require(same(float_of(r[4 + i]), wanted[lane % 8][i]), "a special value", lane, 4 + i);
  }
}

// ---- builtins: of two warps, with words 0-7 of shared memory for atomics

__global__ void builtins_kernel(const Params p) {
  const int i = threadIdx.x, lane = i % 32;
  auto words = reinterpret_cast<int*>(dynamic_shared());
  if (i < 8) words[i] = i == 1 ? 1000 : 0;
  __syncthreads();
  const uint32_t* in = p.in + lane * 16;
  atomicAdd(words, i);
  atomicMin(words + 1, 500 - i);
  atomicMax(words + 2, 3 * i);
  atomicOr(reinterpret_cast<unsigned*>(words + 3), 1u << lane);
  atomicAdd(reinterpret_cast<float*>(words + 4), 0.5f);
  if (i == 7) atomicExch(words + 5, 77);
  atomicCAS(words + 6, 0, i + 1);
  const int count = __syncthreads_count(i % 3 == 0);
  const int any = __syncthreads_or(i == 40), all = __syncthreads_and(i < 63);
  if (i >= 32) return;
  uint32_t* out = p.out + lane * 16;
  out[0] = words[lane % 8];
  out[1] = count + 1000 * any + 10000 * all;
  out[2] = __popc(in[0]);
  out[3] = __brev(in[0]);
  out[4] = __byte_perm(in[0], in[1], 0x6420);
  out[5] = __funnelshift_r(in[0], in[1], 12);
  out[6] = __funnelshift_l(in[0], in[1], 12);
  out[7] = __umulhi(in[0], in[1]);
  out[8] = __dp4a(int(in[0]), int(in[1]), 5);
  out[9] = __clz(in[0] & 0xffff) + 100 * __ffs(in[0] | 1 << 20);
}

void check_builtins(int schedule, uint64_t seed) {
  const auto in = random_words(seed);
  std::vector<uint32_t> out(kWords);
  simt::Launch launch{"builtins", {1}, {64}, 32};
  launch.schedule(schedule, seed).reads(in.data(), kWords).writes(out.data(), kWords);
  launch(builtins_kernel, Params{in.data(), out.data()});
  const uint32_t half = 0x3f000000 + (6 << 23);  // 32.0f = 0.5f * 2^6
  const uint32_t sums[8] = {64 * 63 / 2, 500 - 63, 3 * 63, ~0u, half, 77, 0, 0};
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t *x = &in[lane * 16], *r = &out[lane * 16];
    const uint64_t wide = uint64_t{x[1]} << 32 | x[0];
    if (lane % 8 != 6) require(r[0] == sums[lane % 8], "an atomic", lane, 0);
    if (lane % 8 == 6) require(r[0] >= 1 && r[0] <= 64, "atomicCAS", lane, 0);
    require(r[1] == 22 + 1000, "__syncthreads_count", lane, 1);
    uint32_t ones = 0, reversed = 0, low = 0;
    int32_t dot = 5;
    for (int b = 0; b < 32; ++b) {
      ones += x[0] >> b & 1;
      reversed = reversed << 1 | (x[0] >> b & 1);
    }
    for (int b = 0; b < 4; ++b) {
      low |= uint32_t(wide >> 16 * b & 0xff) << 8 * b;
      dot += int8_t(x[0] >> 8 * b) * int8_t(x[1] >> 8 * b);
    }
    require(r[2] == ones, "__popc", lane, 2);
    require(r[3] == reversed, "__brev", lane, 3);
    require(r[4] == low, "__byte_perm", lane, 4);
    require(r[5] == (x[0] >> 12 | x[1] << 20), "__funnelshift_r", lane, 5);
    require(r[6] == (x[1] << 12 | x[0] >> 20), "__funnelshift_l", lane, 6);
    require(r[7] == uint64_t{x[0]} * x[1] >> 32, "__umulhi", lane, 7);
    require(int32_t(r[8]) == dot, "__dp4a", lane, 8);
    int zeros = 32, first = 32;
    for (int b = 0; b < 16; ++b)
      if (x[0] >> b & 1) zeros = 31 - b;
    for (int b = 31; b >= 0; --b)
      if ((x[0] | 1 << 20) >> b & 1) first = b + 1;
    require(int(r[9]) == zeros + 100 * first, "__clz or __ffs", lane, 9);
  }
}

}  // namespace

extern "C" {

const char* conversions(int schedule, uint64_t seed) {
  return simt::run([&] { check_conversions(schedule, seed); });
}

const char* functions(int schedule, uint64_t seed) {
  return simt::run([&] { check_functions(schedule, seed); });
}

const char* builtins(int schedule, uint64_t seed) {
  return simt::run([&] { check_builtins(schedule, seed); });
}

const char* shuffles_and_votes(int schedule, uint64_t seed) {
  return simt::run([&] { check_shuffles(schedule, seed); });
}
}
