// Quantized rows and linear layers over low-bit weights, as the launchers run them.
#include "cuda/lowbit_gemm_launch.cuh"
#include "cuda/lowbit_wgmma_launch.cuh"
#include "cuda/quantize.cuh"
#include "simt.h"

namespace {

constexpr int kSharedBytes = 48 * 1024;
constexpr int64_t kInt8 = 3;
constexpr int64_t kWgmma = 3;  // the number behind those of LowbitTiles

struct Span {
  const void* begin;
  int64_t bytes;
};

// A launch that may read and write these places only.
class Executor {
 public:
  Executor(int schedule, uint64_t seed) : schedule_(schedule), seed_(seed) {}
  template <class T>
  Executor& reads(const T* place, int64_t count) {
    return add(reads_, place, place ? count * static_cast<int64_t>(sizeof(T)) : 0);
  }
  Executor& reads(const void* place, int64_t bytes) {
    return add(reads_, place, place ? bytes : 0);
  }
  template <class T>
  Executor& writes(T* place, int64_t count) {
    return add(writes_, place, place ? count * static_cast<int64_t>(sizeof(T)) : 0);
  }
  Executor& writes(void* place, int64_t bytes) { return add(writes_, place, place ? bytes : 0); }

  template <class Params>
  void operator()(const char* name, void (*kernel)(Params), int64_t blocks, int threads,
                  int shared_bytes, const Params& params) const {
    simt::Launch launch{name,
                        {static_cast<unsigned>(blocks)},
                        {static_cast<unsigned>(threads)},
                        static_cast<size_t>(shared_bytes)};
    launch.schedule(schedule_, seed_);
    for (const Span& s : reads_) launch.reads(static_cast<const uint8_t*>(s.begin), s.bytes);
    for (const Span& s : writes_)
      launch.writes(static_cast<uint8_t*>(const_cast<void*>(s.begin)), s.bytes);
    launch(kernel, params);
  }

 private:
  Executor& add(std::vector<Span>& spans, const void* place, int64_t bytes) {
    spans.push_back({place, bytes});
    return *this;
  }
  int schedule_;
  uint64_t seed_;
  std::vector<Span> reads_, writes_;
};

// body(a number of the type that `type` names): 0 fp32, 1 bf16, 2 fp16.
template <class Body>
void with_type(int64_t type, const Body& body) {
  if (type == 0) return body(float{});
  if (type == 1) return body(taut::bf16{});
  body(taut::f16{});
}
int64_t bytes_of(int64_t type) { return type == 0 ? 4 : 2; }
int64_t extent(int64_t rows, int64_t stride, int64_t columns) {
  return rows > 0 ? (rows - 1) * stride + columns : 0;
}

}  // namespace

extern "C" const char* quantize(const void* x, int64_t type, const float* channel_scale,
                                const float* channel_shift, int8_t* q, float* scale, int64_t rows,
                                int64_t columns, int64_t x_stride, int64_t group_size, int64_t bits,
                                int64_t grid, int64_t hadamard, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const int groups = static_cast<int>((columns + group_size - 1) / group_size);
    const taut::QuantizeParams p{x,
                                 channel_scale,
                                 channel_shift,
                                 q,
                                 scale,
                                 rows,
                                 x_stride,
                                 columns,
                                 static_cast<int32_t>(columns),
                                 static_cast<int32_t>(group_size),
                                 groups,
                                 static_cast<int32_t>(bits),
                                 taut::midrise_step(bits),
                                 static_cast<taut::QuantizeGrid>(grid),
                                 hadamard != 0};
    Executor launch(static_cast<int>(schedule), seed);
    launch.reads(x, bytes_of(type) * extent(rows, x_stride, columns));
    launch.reads(channel_scale, columns).reads(channel_shift, columns);
    launch.writes(q, rows * columns).writes(scale, rows * groups);
    with_type(type, [&](auto element) {
      taut::launch_quantize<decltype(element)>(p, kSharedBytes, launch);
    });
  });
}

extern "C" const char* norm_quantize(const void* x, int64_t x_type, int64_t type,
                                     const void* residual, const void* bias, const void* weight,
                                     const void* norm_bias, const void* quant_weight,
                                     const void* quant_bias, void* out, int8_t* q, float* scale,
                                     int64_t rows, int64_t columns, int64_t x_stride,
                                     int64_t residual_stride, float eps, int64_t bits,
                                     int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    const taut::NormQuantizeParams p{x,
                                     residual,
                                     bias,
                                     weight,
                                     norm_bias,
                                     quant_weight,
                                     quant_bias,
                                     out,
                                     q,
                                     scale,
                                     rows,
                                     x_stride,
                                     residual_stride,
                                     static_cast<int32_t>(columns),
                                     static_cast<int32_t>(bits),
                                     eps,
                                     quant_weight || quant_bias};
    Executor launch(static_cast<int>(schedule), seed);
    launch.reads(x, bytes_of(x_type) * extent(rows, x_stride, columns));
    launch.reads(residual, bytes_of(type) * extent(rows, residual_stride, columns));
    for (const void* vector : {bias, weight, norm_bias, quant_weight, quant_bias})
      launch.reads(vector, bytes_of(type) * columns);
    launch.writes(out, bytes_of(type) * rows * columns);
    launch.writes(q, rows * columns).writes(scale, rows);
    with_type(type, [&](auto element) {
      using T = decltype(element);
      if (x_type == type) return taut::launch_norm_quantize<T, T>(p, kSharedBytes, launch);
      taut::launch_norm_quantize<float, T>(p, kSharedBytes, launch);
    });
  });
}

// Types: 0 fp32, 1 bf16, 2 fp16; those of x, 3: int8. x has whole 16 bytes per row.
extern "C" const char* linear(const void* x, int64_t x_type, const float* x_scale,
                              const uint8_t* packed, const float* scale, const float* zero_point,
                              const float* codebook, int64_t codebook_rows, const void* bias,
                              const void* residual, void* out, int8_t* q, float* q_scale,
                              int64_t rows, int64_t in_features, int64_t out_features,
                              int64_t x_stride, int64_t bits, int64_t group_size, int64_t x_groups,
                              float x_zero_point, int64_t bias_type, int64_t out_type,
                              int64_t activation, int64_t q_bits, int64_t q_group_size,
                              int64_t tiles, int64_t schedule, uint64_t seed) {
  return simt::run([&] {
    taut::LowbitParams p{};
    p.x = x, p.x_scale = x_scale, p.packed = packed, p.scale = scale, p.zero_point = zero_point;
    p.codebook = codebook, p.codebook_stride = codebook_rows > 1 ? 1 << bits : 0;
    p.bias = bias, p.residual = residual, p.out = out, p.q = q, p.q_scale = q_scale;
    p.rows = rows, p.x_stride = x_stride, p.x_scale_stride = x_groups;
    p.residual_stride = out_features;
    p.in_features = static_cast<int32_t>(in_features);
    p.out_features = static_cast<int32_t>(out_features);
    p.group_size = static_cast<int32_t>(group_size ? group_size : in_features);
    p.groups = (p.in_features + p.group_size - 1) / p.group_size;
    p.x_groups = static_cast<int32_t>(x_groups);
    p.q_group_size = static_cast<int32_t>(q_group_size), p.q_bits = static_cast<int32_t>(q_bits);
    p.x_zero_point = x_zero_point;
    p.bias_type = static_cast<taut::FloatType>(bias_type);
    p.residual_type = p.out_type = static_cast<taut::FloatType>(out_type);
    p.activation = static_cast<taut::Activation>(activation);
    Executor launch(static_cast<int>(schedule), seed);
    const int64_t blocks = (in_features + 63) / 64, panels = (out_features + 63) / 64;
    const int64_t q_groups = q ? (out_features + q_group_size - 1) / q_group_size : 0;
    launch.reads(x, (x_type == kInt8 ? 1 : 2) * extent(rows, x_stride, in_features));
    launch.reads(x_scale, rows * x_groups).reads(codebook, codebook_rows << bits);
    launch.reads(packed, panels * blocks * 512 * bits);
    launch.reads(scale, out_features * p.groups).reads(zero_point, out_features * p.groups);
    launch.reads(bias, bytes_of(bias_type) * out_features);
    launch.reads(residual, bytes_of(out_type) * rows * out_features);
    launch.writes(out, bytes_of(out_type) * rows * out_features);
    launch.writes(q, rows * out_features).writes(q_scale, rows * q_groups);
    const auto run = [&](auto width) {
      constexpr int kBits = decltype(width)::value;
      if (x_type == kInt8 && tiles == kWgmma) return taut::launch_lowbit_wgmma<kBits>(p, launch);
      if (x_type == kInt8)
        return taut::launch_lowbit_linear<kBits>(p, static_cast<taut::LowbitTiles>(tiles), launch);
      // Tiles of 32 or 64 columns.
      const int columns = tiles == 0 ? 32 : 64;
      if (x_type == 1) return taut::launch_lowbit_floats<taut::bf16, kBits>(p, columns, launch);
      taut::launch_lowbit_floats<taut::f16, kBits>(p, columns, launch);
    };
    switch (bits) {
      case 2: return run(std::integral_constant<int, 2>{});
      case 3: return run(std::integral_constant<int, 3>{});
      case 4: return run(std::integral_constant<int, 4>{});
      default: run(std::integral_constant<int, 8>{});
    }
  });
}

extern "C" int64_t chosen_tiles(int64_t rows, int64_t out_features, int64_t processors,
                                int64_t least_columns, int64_t is_hopper) {
  return static_cast<int64_t>(taut::choose_tiles(rows, out_features, static_cast<int>(processors),
                                                 static_cast<int>(least_columns), is_hopper != 0));
}
