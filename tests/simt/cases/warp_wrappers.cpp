// Each warp-level wrapper, on fresh random data, against a loop over the lane map that the PTX ISA
// prints for it. The loops know matrices and elements; nothing of the executor is used in them.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/ptx/convert.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"
#include "warp_case.h"

using namespace taut;
using namespace taut::ptx;

namespace {

// ---- ldmatrix, stmatrix: 16-bit element [matrix][row][column] of the 2 KiB in shared memory, the
// rows of which lie in a permuted order.

__host__ __device__ inline int row_offset(int row) { return (row * 5 + 3) % 32 * 16; }

__device__ void fill_shared(Params p) {
  auto shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  for (int i = 0; i < 4; ++i) shared[row_offset(threadIdx.x) / 4 + i] = p.in[threadIdx.x * 16 + i];
  __syncwarp();
}

uint16_t element(const std::vector<uint32_t>& in, int matrix, int row, int column) {
  return in[(matrix * 8 + row) * 16 + column / 2] >> 16 * (column % 2);
}

template <int matrices, bool transposed>
__global__ void load_kernel(const Params p) {
  fill_shared(p);
  const void* row = dynamic_shared() + row_offset(threadIdx.x % (8 * matrices));
  uint32_t r1, r2[2], r4[4];
  uint32_t* registers = r4;
  if constexpr (matrices == 1) {
    transposed ? ldmatrix_x1_trans(r1, row) : ldmatrix_x1(r1, row);
    registers = &r1;
  } else if constexpr (matrices == 2) {
    transposed ? ldmatrix_x2_trans(r2, row) : ldmatrix_x2(r2, row);
    registers = r2;
  } else {
    transposed ? ldmatrix_x4_trans(r4, row) : ldmatrix_x4(r4, row);
  }
  for (int i = 0; i < matrices; ++i) p.out[threadIdx.x * 16 + i] = registers[i];
}

template <int matrices, bool transposed>
void check_load(int schedule, uint64_t seed) {
  const auto in = random_words(seed);
  const auto out = run_warp("ldmatrix", load_kernel<matrices, transposed>, in, schedule, seed);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < matrices; ++i)
      for (int half = 0; half < 2; ++half) {
        const int row = transposed ? lane % 4 * 2 + half : lane / 4;
        const int column = transposed ? lane / 4 : lane % 4 * 2 + half;
        require(uint16_t(out[lane * 16 + i] >> 16 * half) == element(in, i, row, column),
                "ldmatrix", lane, i);
      }
}

template <int matrices, bool transposed>
__global__ void store_kernel(const Params p) {
  uint8_t* row = dynamic_shared() + row_offset(threadIdx.x % (8 * matrices));
  const uint32_t* in = p.in + threadIdx.x * 16;
  const uint32_t r4[4] = {in[0], in[1], in[2], in[3]}, r2[2] = {in[0], in[1]};
  if constexpr (matrices == 1) {
    stmatrix_x1(row, in[0]);
  } else if constexpr (matrices == 2) {
    stmatrix_x2(row, r2);
  } else {
    transposed ? stmatrix_x4_trans(row, r4) : stmatrix_x4(row, r4);
  }
  __syncwarp();
  if (threadIdx.x < 8 * matrices)
    for (int i = 0; i < 4; ++i)
      p.out[threadIdx.x * 16 + i] = reinterpret_cast<const uint32_t*>(row)[i];
}

template <int matrices, bool transposed>
void check_store(int schedule, uint64_t seed) {
  const auto in = random_words(seed);
  const auto out = run_warp("stmatrix", store_kernel<matrices, transposed>, in, schedule, seed);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < matrices; ++i)
      for (int half = 0; half < 2; ++half) {
        const int row = transposed ? lane % 4 * 2 + half : lane / 4;
        const int column = transposed ? lane / 4 : lane % 4 * 2 + half;
        require(element(out, i, row, column) == uint16_t(in[lane * 16 + i] >> 16 * half),
                "stmatrix", lane, i);
      }
}

// ---- mma: a in registers 0-3, b in 4-5, the accumulators in 6-9 of each lane.

template <class D, void (*product)(D (&)[4], const uint32_t (&)[4], const uint32_t (&)[2])>
__global__ void mma_kernel(const Params p) {
  const uint32_t* in = p.in + threadIdx.x * 16;
  const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
  D d[4];
  for (int i = 0; i < 4; ++i) d[i] = reinterpret_cast<const D*>(in)[6 + i];
  product(d, a, b);
  for (int i = 0; i < 4; ++i) reinterpret_cast<D*>(p.out)[threadIdx.x * 16 + i] = d[i];
}

// D = A * B + C with C elsewhere than D.
template <class T>
__device__ void from_other(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const float c[4] = {d[0], d[1], d[2], d[3]};
  for (int i = 0; i < 4; ++i) d[i] = 77.0f;
  mma_m16n8k16<T>(d, a, b, c);
}

template <void (*product)(int32_t (&)[4], const uint32_t (&)[2], uint32_t)>
__global__ void mma_128_kernel(const Params p) {
  const uint32_t* in = p.in + threadIdx.x * 16;
  const uint32_t a[2] = {in[0], in[1]};
  int32_t d[4];
  for (int i = 0; i < 4; ++i) d[i] = in[6 + i];
  product(d, a, in[4]);
  for (int i = 0; i < 4; ++i) p.out[threadIdx.x * 16 + i] = d[i];
}

// The PTX ISA's formulas, per element i of a lane's fragment.
struct Place {
  int row, column;
};

// m16n8k16, 16-bit elements
Place a_of_k16(int lane, int i) {
  return {(i < 2 || (i >= 4 && i < 6)) ? lane / 4 : lane / 4 + 8,
          i < 4 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8};
}
Place b_of_k16(int lane, int i) {
  return {i < 2 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8, lane / 4};
}
// m16n8k32, 8-bit elements
Place a_of_k32(int lane, int i) {
  return {(i < 4 || (i >= 8 && i < 12)) ? lane / 4 : lane / 4 + 8,
          i < 8 ? lane % 4 * 4 + (i & 3) : lane % 4 * 4 + (i & 3) + 16};
}
Place b_of_k32(int lane, int i) {
  return {i < 4 ? lane % 4 * 4 + (i & 3) : lane % 4 * 4 + (i & 3) + 16, lane / 4};
}
// m16n8k8, tf32
Place a_of_k8(int lane, int i) {
  return {i % 2 ? lane / 4 + 8 : lane / 4, i < 2 ? lane % 4 : lane % 4 + 4};
}
Place b_of_k8(int lane, int i) { return {i ? lane % 4 + 4 : lane % 4, lane / 4}; }
// m16n8k256, single bits
Place a_of_k256(int lane, int i) {
  return {(i < 32 || (i >= 64 && i < 96)) ? lane / 4 : lane / 4 + 8,
          i < 64 ? lane % 4 * 32 + (i & 31) : lane % 4 * 32 + (i & 31) + 128};
}
Place b_of_k256(int lane, int i) {
  return {i < 32 ? lane % 4 * 32 + (i & 31) : lane % 4 * 32 + (i & 31) + 128, lane / 4};
}
// m16n8k128, single bits
Place a_of_k128(int lane, int i) {
  return {i < 32 ? lane / 4 : lane / 4 + 8, lane % 4 * 32 + (i & 31)};
}
Place b_of_k128(int lane, int i) { return {lane % 4 * 32 + (i & 31), lane / 4}; }
// accumulators of all of them
Place d_of(int lane, int i) { return {i < 2 ? lane / 4 : lane / 4 + 8, lane % 4 * 2 + (i & 1)}; }

struct Shape {
  int k, bits, a_count, b_count;  // elements per lane
  Place (*a)(int, int);
  Place (*b)(int, int);
};
constexpr Shape k8{8, 32, 4, 2, a_of_k8, b_of_k8}, k16{16, 16, 8, 4, a_of_k16, b_of_k16},
    k32{32, 8, 16, 8, a_of_k32, b_of_k32}, k128{128, 1, 64, 32, a_of_k128, b_of_k128},
    k256{256, 1, 128, 64, a_of_k256, b_of_k256};

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// `make` draws an element and gives its bits and value; `times` multiplies values.
template <class D, class Make, class Times>
void check_mma(const char* name, void (*kernel)(Params), const Shape& shape, Make make, Times times,
               int schedule, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> in(kWords, 0);
  std::vector<double> a(16 * shape.k), b(shape.k * 8), d(16 * 8);
  const auto put = [&](int lane, int first, int i, uint32_t bits) {
    in[lane * 16 + first + i * shape.bits / 32] |= bits << i * shape.bits % 32;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < shape.a_count; ++i) {
      const auto [bits, value] = make(random);
      put(lane, 0, i, bits);
      const Place at = shape.a(lane, i);
      a[at.row * shape.k + at.column] = value;
    }
    for (int i = 0; i < shape.b_count; ++i) {
      const auto [bits, value] = make(random);
      put(lane, 4, i, bits);
      const Place at = shape.b(lane, i);
      b[at.row * 8 + at.column] = value;
    }
    for (int i = 0; i < 4; ++i) {
      const D start = static_cast<D>(int64_t(random() % 2000) - 1000);
      memcpy(&in[lane * 16 + 6 + i], &start, 4);
      const Place at = d_of(lane, i);
      d[at.row * 8 + at.column] = start;
    }
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < shape.k; ++k)
        d[row * 8 + column] += times(a[row * shape.k + k], b[k * 8 + column]);
  const auto out = run_warp(name, kernel, in, schedule, seed);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      D got;
      memcpy(&got, &out[lane * 16 + i], 4);
      const Place at = d_of(lane, i);
      const double want = d[at.row * 8 + at.column];
      require(std::abs(got - want) <= (std::is_same_v<D, float> ? 1e-6 * std::abs(want) + 1e-4 : 0),
              name, lane, i);
    }
}

struct Drawn {
  uint32_t bits;
  double value;
};
// Small multiples of 1/8 that every format holds exactly: bits follow from the format's definition.
double eighths(std::mt19937_64& random) { return (int(random() % 61) - 30) / 8.0; }
Drawn make_bf16(std::mt19937_64& random) {
  const float x = eighths(random);
  return {bits_of(x) >> 16, x};
}
Drawn make_f16(std::mt19937_64& random) {
  const float x = eighths(random);
  if (x == 0) return {0, 0};
  const uint32_t bits = bits_of(x);  // rebias the exponent from 127 to 15, keep 10 bits
  return {(bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff), x};
}
Drawn make_tf32(std::mt19937_64& random) {
  const float x = eighths(random);
  return {bits_of(x), x};
}
Drawn make_s8(std::mt19937_64& random) {
  const auto x = static_cast<int8_t>(random());
  return {static_cast<uint8_t>(x), double(x)};
}
Drawn make_bit(std::mt19937_64& random) {
  const uint32_t x = random() & 1;
  return {x, double(x)};
}
double product(double x, double y) { return x * y; }
double exclusive_or(double x, double y) { return x != y; }

}  // namespace

extern "C" {

const char* ldmatrix(int schedule, uint64_t seed) {
  return simt::run([&] {
    check_load<1, false>(schedule, seed);
    check_load<1, true>(schedule, seed);
    check_load<2, false>(schedule, seed);
    check_load<2, true>(schedule, seed);
    check_load<4, false>(schedule, seed);
    check_load<4, true>(schedule, seed);
  });
}

const char* stmatrix(int schedule, uint64_t seed) {
  return simt::run([&] {
    check_store<1, false>(schedule, seed);
    check_store<2, false>(schedule, seed);
    check_store<4, false>(schedule, seed);
    check_store<4, true>(schedule, seed);
  });
}

const char* mma_16_bit(int schedule, uint64_t seed) {
  return simt::run([&] {
    check_mma<float>("mma bf16 from C", mma_kernel<float, from_other<bf16>>, k16, make_bf16,
                     product, schedule, seed);
    check_mma<float>("mma f16 from C", mma_kernel<float, from_other<f16>>, k16, make_f16, product,
                     schedule, seed);
    check_mma<float>("mma bf16", mma_kernel<float, mma_m16n8k16<bf16>>, k16, make_bf16, product,
                     schedule, seed);
    check_mma<float>("mma f16", mma_kernel<float, mma_m16n8k16<f16>>, k16, make_f16, product,
                     schedule, seed);
  });
}

const char* mma_tf32(int schedule, uint64_t seed) {
  return simt::run([&] {
    check_mma<float>("mma tf32", mma_kernel<float, mma_m16n8k8_tf32>, k8, make_tf32, product,
                     schedule, seed);
  });
}

const char* mma_s8(int schedule, uint64_t seed) {
  return simt::run([&] {
    check_mma<int32_t>("mma s8", mma_kernel<int32_t, mma_m16n8k32_s8>, k32, make_s8, product,
                       schedule, seed);
  });
}

const char* mma_b1(int schedule, uint64_t seed) {
  return simt::run([&] {
    check_mma<int32_t>("mma and 256", mma_kernel<int32_t, mma_m16n8k256_and>, k256, make_bit,
                       product, schedule, seed);
    check_mma<int32_t>("mma xor 256", mma_kernel<int32_t, mma_m16n8k256_xor>, k256, make_bit,
                       exclusive_or, schedule, seed);
    check_mma<int32_t>("mma and 128", mma_128_kernel<mma_m16n8k128_and>, k128, make_bit, product,
                       schedule, seed);
    check_mma<int32_t>("mma xor 128", mma_128_kernel<mma_m16n8k128_xor>, k128, make_bit,
                       exclusive_or, schedule, seed);
  });
}
}
