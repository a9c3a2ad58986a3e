// Copies, barriers and warpgroup products, on fresh random data, against loops over the layouts
// that the PTX ISA gives. The loops know matrices and elements; nothing of the executor is used in
// them.
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/ptx/barrier.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/swizzle.h"
#include "cuda/ptx/tma.h"
#include "cuda/ptx/wgmma.h"
#include "simt.h"

using namespace taut;
using namespace taut::ptx;

namespace {

void require(bool ok, const std::string& what) {
  if (!ok) throw std::runtime_error(what + " is wrong");
}

std::vector<uint8_t> random_bytes(size_t count, std::mt19937_64& random) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& b : bytes) b = random();
  return bytes;
}

// 16-byte aligned memory, as tensor maps need it.
struct alignas(16) Chunk {
  uint8_t bytes[16];
};

// ---- cp.async: thread i copies the first i % (size + 1) bytes, the rest of the size is zeros.

struct BytesParams {
  const uint8_t* in;
  uint8_t* out;
};

template <int size>
__global__ void cp_async_kernel(const BytesParams p) {
  const int i = threadIdx.x;
  cp_async<size>(dynamic_shared() + i * size, p.in + i * size, i % (size + 1));
  cp_async_commit();
  cp_async_wait<0>();
  for (int b = 0; b < size; ++b) p.out[i * size + b] = dynamic_shared()[i * size + b];
}

template <int size>
void check_cp_async(int schedule, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Chunk> in(64), out(64);
  for (Chunk& c : in)
    for (uint8_t& b : c.bytes) b = random();
  const auto source = in[0].bytes;
  const auto result = out[0].bytes;
  simt::Launch launch{"cp_async", {1}, {64}, 1024};
  launch.schedule(schedule, seed).reads(source, 64 * size).writes(result, 64 * size);
  launch(cp_async_kernel<size>, BytesParams{source, result});
  for (int i = 0; i < 64; ++i)
    for (int b = 0; b < size; ++b)
      require(result[i * size + b] == (b < i % (size + 1) ? source[i * size + b] : 0), "cp.async");
}

// ---- tensor copies: a box of a tensor of 16-bit elements is loaded, its shared image written out,
// and the box stored to another tensor at other coordinates.

struct TensorParams {
  TensorMap source, target;
  uint8_t* image;
  int rank, bytes;
  int load[4], store[4];
};

__global__ void tensor_kernel(const __grid_constant__ TensorParams p) {
  uint8_t* tile = dynamic_shared();
  auto* barrier = reinterpret_cast<uint64_t*>(tile + p.bytes);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    prefetch_tensor_map(&p.source);
    mbarrier_arrive_expect(barrier, p.bytes);
    const int* c = p.load;
    if (p.rank == 2)
      tensor_load(tile, &p.source, barrier, c[0], c[1]);
    else if (p.rank == 3)
      tensor_load(tile, &p.source, barrier, c[0], c[1], c[2]);
    else
      tensor_load(tile, &p.source, barrier, c[0], c[1], c[2], c[3]);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < p.bytes; i += blockDim.x) p.image[i] = tile[i];
  if (threadIdx.x == 0) {
    const int* c = p.store;
    if (p.rank == 2)
      tensor_store(&p.target, tile, c[0], c[1]);
    else if (p.rank == 3)
      tensor_store(&p.target, tile, c[0], c[1], c[2]);
    else
      tensor_store(&p.target, tile, c[0], c[1], c[2], c[3]);
    bulk_commit();
    bulk_wait_read<0>();
    bulk_wait<0>();
  }
}

struct Tensor4 {
  uint64_t sizes[4];
  std::vector<Chunk> chunks;
  uint16_t* data() { return reinterpret_cast<uint16_t*>(chunks.data()); }
  size_t count() const { return chunks.size() * 8; }
  // Rows are padded to 8 elements, so that strides are multiples of 16 bytes.
  uint64_t pitch() const { return (sizes[0] + 7) / 8 * 8; }
  uint16_t* at(const int64_t* c) {
    for (int d = 0; d < 4; ++d)
      if (c[d] < 0 || c[d] >= int64_t(sizes[d])) return nullptr;
    return data() + ((c[3] * sizes[2] + c[2]) * sizes[1] + c[1]) * pitch() + c[0];
  }
  TensorMap map(int rank, const uint32_t* box, int swizzle) {
    const uint64_t strides[3] = {2 * pitch(), 2 * pitch() * sizes[1],
                                 2 * pitch() * sizes[1] * sizes[2]};
    return simt::encode_tensor_map(data(), 2, rank, sizes, strides, box, swizzle);
  }
};

Tensor4 random_tensor(int rank, std::mt19937_64& random) {
  Tensor4 t{{1, 1, 1, 1}, {}};
  for (int d = 0; d < rank; ++d) t.sizes[d] = 3 + random() % (d ? 9 : 70);
  t.chunks.resize(t.pitch() * t.sizes[1] * t.sizes[2] * t.sizes[3] / 8);
  for (size_t i = 0; i < t.count(); ++i) t.data()[i] = random();
  return t;
}

void check_tensor_copies(int rank, int swizzle, int schedule, uint64_t seed) {
  std::mt19937_64 random(seed);
  Tensor4 source = random_tensor(rank, random), target = random_tensor(rank, random);
  const Tensor4 before = target;
  uint32_t box[4] = {swizzle ? 64u : 8u * (1 + unsigned(random() % 4)), 1, 1, 1};
  TensorParams p{};
  p.rank = rank;
  p.bytes = 2 * box[0];
  for (int d = 0; d < rank; ++d) {
    if (d) p.bytes *= box[d] = 1 + random() % 4;
    p.load[d] = int(random() % 12) - 4;
    p.store[d] = int(random() % 12) - 4;
  }
  p.source = source.map(rank, box, swizzle);
  p.target = target.map(rank, box, swizzle);
  std::vector<uint8_t> image(p.bytes);
  p.image = image.data();
  simt::Launch launch{"tensor_copies", {1}, {32}, size_t(p.bytes) + 8};
  launch.schedule(schedule, seed).reads(source.data(), source.count());
  launch.writes(target.data(), target.count()).writes(p.image, image.size());
  launch(tensor_kernel, p);

  Tensor4 want = before;
  int linear = 0;
  for (uint32_t i3 = 0; i3 < box[3]; ++i3)
    for (uint32_t i2 = 0; i2 < box[2]; ++i2)
      for (uint32_t i1 = 0; i1 < box[1]; ++i1)
        for (uint32_t i0 = 0; i0 < box[0]; ++i0, linear += 2) {
          const int64_t i[4] = {i0, i1, i2, i3};
          int64_t from[4], to[4];
          for (int d = 0; d < 4; ++d) from[d] = p.load[d] + i[d], to[d] = p.store[d] + i[d];
          const uint16_t element = source.at(from) ? *source.at(from) : 0;
          // 128B swizzle: chunk c of the 128-byte row r lies at chunk c ^ (r % 8).
          const int row = linear / 128, chunk = linear / 16 % 8;
          const int place = swizzle ? row * 128 + (chunk ^ row % 8) * 16 + linear % 16 : linear;
          if (swizzle) require(int(swizzle_128(linear)) == place, "swizzle_128");
          uint16_t got;
          memcpy(&got, &image[place], 2);
          require(got == element, "a loaded tile");
          if (want.at(to)) *want.at(to) = element;
        }
  for (size_t i = 0; i < want.count(); ++i)
    require(target.data()[i] == want.data()[i], "a stored tile");
}

// ---- bulk copies, and an mbarrier through several phases: a ring of two stages.

__global__ void ring_kernel(const BytesParams p) {
  uint8_t* stages = dynamic_shared();
  auto* full = reinterpret_cast<uint64_t*>(stages + 2 * 512);
  uint64_t* empty = full + 2;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; ++s) {
      mbarrier_init(full + s, 1);
      mbarrier_init(empty + s, 64);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int tiles = 7;
  if (threadIdx.x >= 64) {
    for (int tile = 0; tile < tiles && threadIdx.x == 64; ++tile) {
      const int s = tile % 2;
      mbarrier_wait(empty + s, tile / 2 % 2 ^ 1);
      mbarrier_arrive_expect(full + s, 512);
      bulk_load(stages + s * 512, p.in + tile * 512, 512, full + s);
    }
    return;
  }
  for (int tile = 0; tile < tiles; ++tile) {
    const int s = tile % 2;
    mbarrier_wait(full + s, tile / 2 % 2);
    auto* values = reinterpret_cast<uint64_t*>(stages + s * 512);
    const uint64_t value = values[threadIdx.x];
    values[threadIdx.x] = ~value;
    fence_async_shared();
    barrier_sync(1, 64);
    if (threadIdx.x == 0) {
      bulk_store(p.out + tile * 512, values, 512);
      bulk_commit();
      bulk_wait<0>();
    }
    __syncwarp();
    mbarrier_arrive(empty + s);
  }
}

void check_ring(int schedule, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Chunk> in(7 * 32), out(7 * 32);
  for (Chunk& c : in)
    for (uint8_t& b : c.bytes) b = random();
  simt::Launch launch{"ring", {1}, {96}, 2 * 512 + 4 * 8};
  launch.schedule(schedule, seed).reads(in.data(), in.size()).writes(out.data(), out.size());
  launch(ring_kernel, BytesParams{in[0].bytes, out[0].bytes});
  for (size_t i = 0; i < in.size(); ++i)
    for (int b = 0; b < 16; ++b)
      require(out[i].bytes[b] == uint8_t(~in[i].bytes[b]), "a bulk copy");
}

// ---- named barriers: producers hand over and do not wait.

__global__ void named_barrier_kernel(const BytesParams p) {
  const int i = threadIdx.x;
  if (i < 64) {
    dynamic_shared()[i] = p.in[i];
    barrier_arrive(3, 96);
  } else {
    barrier_sync(3, 96);
    p.out[i - 64] = dynamic_shared()[i - 64] + dynamic_shared()[i - 32];
  }
}

void check_named_barriers(int schedule, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto in = random_bytes(64, random);
  std::vector<uint8_t> out(32);
  simt::Launch launch{"named_barriers", {1}, {96}, 64};
  launch.schedule(schedule, seed).reads(in.data(), 64).writes(out.data(), 32);
  launch(named_barrier_kernel, BytesParams{in.data(), out.data()});
  for (int i = 0; i < 32; ++i) require(out[i] == uint8_t(in[i] + in[i + 32]), "a named barrier");
}

}  // namespace

extern "C" {

const char* cp_async_sizes(int schedule, uint64_t seed) {
  return simt::run([&] {
    check_cp_async<4>(schedule, seed);
    check_cp_async<8>(schedule, seed);
    check_cp_async<16>(schedule, seed);
  });
}

const char* tensor_copies(int schedule, uint64_t seed) {
  return simt::run([&] {
    for (int rank = 2; rank <= 4; ++rank)
      for (int swizzle : {0, 128}) check_tensor_copies(rank, swizzle, schedule, seed);
  });
}

const char* bulk_copies_and_mbarriers(int schedule, uint64_t seed) {
  return simt::run([&] { check_ring(schedule, seed); });
}

const char* named_barriers(int schedule, uint64_t seed) {
  return simt::run([&] { check_named_barriers(schedule, seed); });
}
}
