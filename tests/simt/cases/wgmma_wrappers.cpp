// wgmma, on fresh random data, against a loop over matrices. The shared-memory images and fragments
// are laid out element by element as the PTX ISA draws them; nothing of the executor is used in
// that.
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/swizzle.h"
#include "cuda/ptx/wgmma.h"
#include "simt.h"

using namespace taut;
using namespace taut::ptx;

namespace {

// One operand in shared memory, and how the k-steps (32 bytes of k each) proceed in it.
struct Layout {
  uint32_t offset, leading, stride, step;
  Swizzle swizzle;
};

struct Params {
  const uint32_t* image;
  const uint32_t* a_registers;  // [step][thread][4]
  uint32_t* out;                // [thread][N / 2]
  int words, steps;
  Layout a, b;
};

__device__ uint64_t descriptor(const Layout& l, int step) {
  const uint64_t first =
      matrix_descriptor(dynamic_shared() + l.offset, l.leading, l.stride, l.swizzle);
  return descriptor_after(first, step * l.step);
}

template <class T, class D, int N, bool registers, Major a_major, Major b_major>
__global__ void __launch_bounds__(128) wgmma_kernel(const Params p) {
  auto shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  for (int i = threadIdx.x; i < p.words; i += 128) shared[i] = p.image[i];
  fence_async_shared();
  __syncthreads();
  D d[N / 2];
  uint32_t a[4][4];
  for (int step = 0; registers && step < p.steps; ++step)
    for (int i = 0; i < 4; ++i) a[step][i] = p.a_registers[(step * 128 + threadIdx.x) * 4 + i];
  wgmma_fence();
  for (int step = 0; step < p.steps; ++step) {
    if constexpr (registers)
      wgmma_rs<T, b_major>(d, a[step], descriptor(p.b, step), step > 0);
    else
      wgmma_ss<T, a_major, b_major>(d, descriptor(p.a, step), descriptor(p.b, step), step > 0);
    wgmma_commit();
  }
  wgmma_wait<0>();
  for (int i = 0; i < N / 2; ++i) memcpy(&p.out[threadIdx.x * (N / 2) + i], &d[i], 4);
}

// Where byte b of k of row r (of M or N) lies when K is contiguous: rows of `width` bytes, in which
// 16-byte chunks are permuted; without swizzle, 8 x 16-byte blocks, the next rows' block first.
uint32_t k_major_place(Swizzle swizzle, int rows, int r, int b) {
  switch (swizzle) {
    case Swizzle::bytes_128: return r * 128 + (b / 16 ^ r % 8) * 16 + b % 16;
    case Swizzle::bytes_64: return r * 64 + (b / 16 ^ r / 2 % 4) * 16 + b % 16;
    case Swizzle::bytes_32: return r * 32 + (b / 16 ^ r / 4 % 2) * 16 + b % 16;
    case Swizzle::none: break;
  }
  return b / 16 * rows * 16 + r / 8 * 128 + r % 8 * 16 + b % 16;
}
int width_of(Swizzle swizzle) {
  return swizzle == Swizzle::bytes_128  ? 128
         : swizzle == Swizzle::bytes_64 ? 64
         : swizzle == Swizzle::bytes_32 ? 32
                                        : 16;
}
Layout k_major_layout(Swizzle swizzle, int rows) {
  if (swizzle == Swizzle::none) return {0, uint32_t(rows) * 16, 128, uint32_t(rows) * 32, swizzle};
  return {0, 16, uint32_t(8 * width_of(swizzle)), 32, swizzle};
}

// Where 16-bit element (r of M or N, k) lies when M or N is contiguous: runs of `width` bytes for
// all k, one run after the other; without swizzle, 8 x 8 blocks, the next r first.
uint32_t mn_major_place(Swizzle swizzle, int rows, int ks, int r, int k) {
  const int width = width_of(swizzle);
  if (swizzle == Swizzle::none) return k / 8 * rows * 16 + r / 8 * 128 + k % 8 * 16 + r % 8 * 2;
  const int run = r * 2 / width, within = r * 2 % width;
  return run * ks * width + k_major_place(swizzle, 0, k, within);
}
Layout mn_major_layout(Swizzle swizzle, int rows, int ks) {
  const uint32_t width = width_of(swizzle);
  if (swizzle == Swizzle::none) return {0, uint32_t(rows) * 16, 128, uint32_t(rows) * 32, swizzle};
  return {0, ks * width, 8 * width, 16 * width, swizzle};
}

struct Drawn {
  uint32_t bits;
  double value;
};
uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
double eighths(std::mt19937_64& random) { return (int(random() % 61) - 30) / 8.0; }

struct Bf16 {
  using type = bf16;
  using sum = float;
  static constexpr int bits = 16;
  static Drawn draw(std::mt19937_64& random) {
    const float x = eighths(random);
    return {bits_of(x) >> 16, x};
  }
};
struct F16 {
  using type = f16;
  using sum = float;
  static constexpr int bits = 16;
  static Drawn draw(std::mt19937_64& random) {
    const float x = eighths(random);
    if (x == 0) return {0, 0};
    const uint32_t b = bits_of(x);
    return {(b >> 16 & 0x8000) | ((b >> 23 & 0xff) - 112) << 10 | (b >> 13 & 0x3ff), x};
  }
};
struct E4m3 {
  using type = e4m3;
  using sum = float;
  static constexpr int bits = 8;
  static Drawn draw(std::mt19937_64& random) {
    const uint32_t b = (random() % 0x7f) | (random() % 2) << 7;
    const int exponent = b >> 3 & 15, mantissa = b & 7;
    const double x = exponent ? std::pow(2.0, exponent - 7) * (1 + mantissa / 8.0)
                              : std::pow(2.0, -6) * (mantissa / 8.0);
    return {b, b & 0x80 ? -x : x};
  }
};
struct S8 {
  using type = int8_t;
  using sum = int32_t;
  static constexpr int bits = 8;
  static Drawn draw(std::mt19937_64& random) {
    const auto x = static_cast<int8_t>(random());
    return {static_cast<uint8_t>(x), double(x)};
  }
};
struct B1 {
  using type = b1;
  using sum = int32_t;
  static constexpr int bits = 1;
  static Drawn draw(std::mt19937_64& random) {
    const uint32_t x = random() % 2;
    return {x, double(x)};
  }
};

template <class E, int N, bool registers, Major a_major = Major::k, Major b_major = Major::k>
void check(Swizzle a_swizzle, Swizzle b_swizzle, int schedule, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int step_k = 256 / E::bits;
  // As many steps as one 128-byte row holds, or fewer where the rows are shorter.
  int steps = 4;
  if (!registers && a_major == Major::k && a_swizzle != Swizzle::none)
    steps = std::min(steps, width_of(a_swizzle) / 32);
  if (b_major == Major::k && b_swizzle != Swizzle::none)
    steps = std::min(steps, width_of(b_swizzle) / 32);
  const int ks = steps * step_k;
  Params p{};
  p.steps = steps;
  p.a = a_major == Major::k ? k_major_layout(a_swizzle, 64) : mn_major_layout(a_swizzle, 64, ks);
  p.b = b_major == Major::k ? k_major_layout(b_swizzle, N) : mn_major_layout(b_swizzle, N, ks);
  p.b.offset = 64 * 128;
  std::vector<uint8_t> image(64 * 128 + N * 128, 0);
  std::vector<uint32_t> fragments(steps * 128 * 4, 0);
  std::vector<double> a(64 * ks), b(ks * N);
  const auto put = [&](uint32_t base, Major major, Swizzle swizzle, int rows, int r, int k,
                       uint32_t bits) {
    const int bit = k * E::bits;
    const uint32_t at = major == Major::k ? k_major_place(swizzle, rows, r, bit / 8)
                                          : mn_major_place(swizzle, rows, ks, r, k);
    if (E::bits == 16)
      memcpy(&image[base + at], &bits, 2);
    else
      image[base + at] |= bits << bit % 8;
  };
  for (int r = 0; r < 64; ++r)
    for (int k = 0; k < ks; ++k) {
      const Drawn x = E::draw(random);
      a[r * ks + k] = x.value;
      if (!registers) {
        put(0, a_major, a_swizzle, 64, r, k, x.bits);
        continue;
      }
      // Fragment: warp r / 16; lane 4 (row % 8) + t; registers 0, 1: rows 0-7, 8-15, first half of
      // the step's k; 2, 3: second half. t and the place in the register follow from k.
      const int step = k / step_k, in_step = k % step_k, per_register = 32 / E::bits;
      const int half = in_step / (step_k / 2), t = in_step % (step_k / 2) / per_register;
      const int thread = r / 16 * 32 + r % 8 * 4 + t;
      fragments[(step * 128 + thread) * 4 + half * 2 + r % 16 / 8] |=
          x.bits << in_step % per_register * E::bits;
    }
  for (int r = 0; r < N; ++r)
    for (int k = 0; k < ks; ++k) {
      const Drawn x = E::draw(random);
      b[k * N + r] = x.value;
      put(p.b.offset, b_major, b_swizzle, N, r, k, x.bits);
    }
  std::vector<uint32_t> words(image.size() / 4), out(128 * N / 2);
  memcpy(words.data(), image.data(), image.size());
  p.image = words.data();
  p.words = words.size();
  p.a_registers = fragments.data();
  p.out = out.data();
  simt::Launch launch{"wgmma", {1}, {128}, image.size()};
  launch.schedule(schedule, seed).reads(p.image, words.size());
  launch.reads(p.a_registers, fragments.size()).writes(p.out, out.size());
  launch(wgmma_kernel<typename E::type, typename E::sum, N, registers, a_major, b_major>, p);
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < N / 2; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
      const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      double want = 0, size = 0;
      for (int k = 0; k < ks; ++k) {
        want += a[row * ks + k] * b[k * N + column];
        size += std::abs(a[row * ks + k] * b[k * N + column]);
      }
      typename E::sum got;
      memcpy(&got, &out[thread * (N / 2) + i], 4);
      if (!(std::abs(got - want) <= (std::is_same_v<typename E::sum, float> ? 1e-6 * size : 0)))
        throw std::runtime_error("wgmma: N = " + std::to_string(N) + ", thread " +
                                 std::to_string(thread) + ", accumulator " + std::to_string(i) +
                                 ": got " + std::to_string(got) + ", expected " +
                                 std::to_string(want));
    }
}

constexpr Swizzle kSwizzles[] = {Swizzle::none, Swizzle::bytes_128, Swizzle::bytes_64,
                                 Swizzle::bytes_32};

}  // namespace

extern "C" {

const char* wgmma_16_bit(int schedule, uint64_t seed) {
  return simt::run([&] {
    for (Swizzle swizzle : kSwizzles) {
      check<Bf16, 64, false>(swizzle, swizzle, schedule, seed);
      check<F16, 32, true>(swizzle, swizzle, schedule, seed);
    }
    check<Bf16, 192, true>(Swizzle::none, Swizzle::bytes_128, schedule, seed);
  });
}

const char* wgmma_along_mn(int schedule, uint64_t seed) {
  return simt::run([&] {
    for (Swizzle swizzle : kSwizzles) {
      check<Bf16, 128, false, Major::mn, Major::mn>(swizzle, swizzle, schedule, seed);
      check<F16, 64, true, Major::k, Major::mn>(swizzle, swizzle, schedule, seed);
    }
    check<F16, 96, false, Major::mn, Major::k>(Swizzle::none, Swizzle::bytes_128, schedule, seed);
    check<Bf16, 256, false, Major::k, Major::mn>(Swizzle::bytes_128, Swizzle::bytes_64, schedule,
                                                 seed);
  });
}

const char* wgmma_8_bit(int schedule, uint64_t seed) {
  return simt::run([&] {
    for (Swizzle swizzle : kSwizzles) {
      check<S8, 128, false>(swizzle, swizzle, schedule, seed);
      check<E4m3, 96, false>(swizzle, swizzle, schedule, seed);
      check<S8, 8, true>(swizzle, swizzle, schedule, seed);
      check<E4m3, 16, true>(swizzle, swizzle, schedule, seed);
    }
  });
}

const char* wgmma_1_bit(int schedule, uint64_t seed) {
  return simt::run([&] {
    for (int r = 0; r < 16; ++r)
      for (int b = 0; b < 64; ++b)
        if (swizzle_64(r * 64 + b) != k_major_place(Swizzle::bytes_64, 16, r, b))
          throw std::runtime_error("swizzle_64: row " + std::to_string(r));
    for (Swizzle swizzle : kSwizzles) {
      check<B1, 64, false>(swizzle, swizzle, schedule, seed);
      check<B1, 16, true>(swizzle, swizzle, schedule, seed);
    }
  });
}
}
