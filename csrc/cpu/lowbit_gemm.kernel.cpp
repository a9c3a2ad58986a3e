// x W^T over low-bit weights, with what precedes a linear layer (quantization of x) and what
// follows it (bias, activation, residual; LayerNorm; quantization) done while the rows are in
// cache.
//
// Integer sums are exact, and the fp32 operations behind them are the same for every row: a row's
// result does not depend on the other rows, the instructions that summed it, or the threads.
#include "cpu/lowbit_gemm.h"

#include "cpu/isa/prefetch.h"
#include "cpu/lowbit_gemm_floats.h"
#include "cpu/lowbit_gemm_integers.h"
#include "cpu/lowbit_gemm_sink.h"
#include "cpu/norm_row.h"
#include "cpu/quantize_row.h"
#if defined(TAUT_ISA_amx)
#include "cpu/lowbit_gemm_tiles.h"
#endif

namespace taut {
namespace TAUT_ISA {
namespace {

// ---- before the product

int32_t sum_codes(const int8_t* codes, int64_t count) {
  constexpr int64_t kBytes = 4 * Vec::kWidth;
  Ints sums = Ints::zero(), others = Ints::zero();  // side by side: neither waits for the other
  int64_t i = 0;
  for (; i + 2 * kBytes <= count; i += 2 * kBytes) {
    sums = dot<8>(sums, Bytes::set(1), Bytes::load(codes + i));
    others = dot<8>(others, Bytes::set(1), Bytes::load(codes + i + kBytes));
  }
  for (; i + kBytes <= count; i += kBytes)
    sums = dot<8>(sums, Bytes::set(1), Bytes::load(codes + i));
  sums = sums + others;
  int32_t sum = reduce_add(sums);
  for (; i < count; ++i) sum += codes[i];
  return sum;
}

void sum_groups(const LowbitParams& p, const int8_t* codes, int32_t* sums) {
  const int64_t group_codes = p.group_units * kLowbitUnit;
  for (int64_t g = 0, k = 0; g < p.groups; ++g, k += group_codes) {
    const int64_t left = p.in_features - k;
    sums[g] = sum_codes(codes + k, left < group_codes ? left : group_codes);
  }
}

// Where the codes of a row are written first; those that are split lie behind their even half.
inline int8_t* staged_codes(const LowbitParams& p, const LowbitRows& rows, int64_t row) {
  return rows.codes + row * p.codes_stride() + (p.split_x ? p.row_codes() : 0);
}

template <class T>
void quantize_rows(const LowbitParams& p, int64_t begin, int64_t end, const LowbitRows& rows) {
  const Grid grid = absmax_grid(p.x_bits);
  for (int64_t r = begin; r < end; ++r) {
    int8_t* codes = staged_codes(p, rows, r - begin);
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    const QuantizedRow row = quantize_row(x, p.in_features, grid, codes);
    rows.scale[r - begin] = row.scale;
    rows.sum[(r - begin) * p.groups] = row.sum;
    if (p.groups > 1) sum_groups(p, codes, rows.sum + (r - begin) * p.groups);
  }
}

void take_rows(const LowbitParams& p, int64_t begin, int64_t end, const LowbitRows& rows) {
  for (int64_t r = begin; r < end; ++r) {
    const int8_t* codes = static_cast<const int8_t*>(p.x) + r * p.x_stride;
    if (!p.in_place)
      std::memcpy(staged_codes(p, rows, r - begin), codes, static_cast<size_t>(p.in_features));
    sum_groups(p, codes, rows.sum + (r - begin) * p.groups);
    std::memcpy(rows.scale + (r - begin) * p.x_groups, p.x_scale + r * p.x_scale_stride,
                static_cast<size_t>(p.x_groups) * sizeof(float));
  }
}

void widen_rows(const LowbitParams& p, int64_t begin, int64_t end, const LowbitRows& rows) {
  for (int64_t r = begin; r < end; ++r) {
    const f16* x = static_cast<const f16*>(p.x) + r * p.x_stride;
    float* out = rows.wide + (r - begin) * p.in_features;
    for_columns(p.in_features, [&](int64_t c, int n) { store(load(x + c, n), out + c, n); });
  }
}

// ---- behind the product

// v * weight + bias at column c; either may be null.
template <class T>
inline Vec affine(Vec v, const T* weight, const T* bias, int64_t c, int n) {
  if (weight) v = v * load(weight + c, n);
  if (bias) v = v + load(bias + c, n);
  return v;
}

// LayerNorm of a row to `out`; what is quantized next, in fp32 to the row itself. Returns the
// latter's absmax_of.
template <class T>
float norm_in_place(const LowbitParams& p, float* row, T* out) {
  const int64_t columns = p.out_features;
  const T* weight = static_cast<const T*>(p.weight);
  const T* norm_bias = static_cast<const T*>(p.norm_bias);
  const T* quant_weight = static_cast<const T*>(p.quant_weight);
  const T* quant_bias = static_cast<const T*>(p.quant_bias);
  const Vec total = lane_sums(columns, [&](int64_t c, int n) { return load(row + c, n); });
  const Moments moments = moments_of(row, columns, total, false, p.eps);
  const Vec scale = Vec::set(moments.rstd), shift = Vec::set(moments.mean);
  Ints largest = Ints::zero();
  for_columns(columns, [&](int64_t c, int n) {
    const Vec normalized = (load(row + c, n) - shift) * scale;
    const Vec v = affine(normalized, weight, norm_bias, c, n);
    store(v, out + c, n);
    if (!p.q) return;
    const Vec next = p.second_affine ? affine(normalized, quant_weight, quant_bias, c, n) : v;
    store(next, row + c, n);
    // Lanes past the end need not be 0.
    if (n == Vec::kWidth) largest = max(largest, bits_of(abs(next)));
  });
  const int64_t rest = columns / Vec::kWidth * Vec::kWidth;
  if (rest < columns)
    largest = max(largest, bits_of(abs(load(row + rest, static_cast<int>(columns - rest)))));
  return absmax_of(largest);
}

// ---- the product

struct Work {
  const LowbitParams& p;
  const LowbitBlock& block;
  const LowbitRows& rows;
  const LowbitScratch& scratch;
  float* sums;  // or null: p.out

  int64_t count() const { return block.row_end - block.row_begin; }
  int64_t channels(int64_t panel) const {
    const int64_t left = p.out_features - panel * kLowbitPanel;
    return left < kLowbitPanel ? left : kLowbitPanel;
  }

  PanelSink sink(int64_t panel, const PanelConstants& constants, int64_t sums_stride) const {
    const int64_t channel = panel * kLowbitPanel;
    const auto take = [&] {
      if (!p.integer() || !scaled_at_once(p, constants))
        return take_part_of<FloatTile>(p, sums != nullptr);
      return constants.common_zero ? take_part_of<ScaledTile<true>>(p, sums != nullptr)
                                   : take_part_of<ScaledTile<false>>(p, sums != nullptr);
    };
    const auto place = [&](const void* data, Element type, int64_t stride) -> const void* {
      return data ? static_cast<const char*>(data) +
                        (block.row_begin * stride + channel) * size_of(type)
                  : nullptr;
    };
    return {take(),
            constants,
            rows.sum,
            rows.scale,
            place(p.residual, p.residual_type, p.residual_stride),
            sums ? sums + channel : const_cast<void*>(place(p.out, p.out_type, p.out_features)),
            sums_stride,
            p.residual_stride,
            sums ? p.sums_stride() : p.out_features};
  }

  // Ask for what the sink will read and write, so that it need not wait.
  __attribute__((always_inline)) void prefetch_residual(int64_t row, int64_t rows, int64_t channel,
                                                        int64_t channels) const {
    if (p.residual)
      prefetch_part<Access::read>(p.residual, size_of(p.residual_type), p.residual_stride,
                                  block.row_begin + row, rows, channel, channels);
  }
  __attribute__((always_inline)) void prefetch_out(int64_t row, int64_t rows, int64_t channel,
                                                   int64_t channels) const {
    if (!sums)
      prefetch_part<Access::write>(p.out, size_of(p.out_type), p.out_features,
                                   block.row_begin + row, rows, channel, channels);
  }
};

// Sums a panel row by row of tiles.
template <int Bits>
void vector_panel(const Work& work, int64_t panel, const uint8_t* codes,
                  const PanelConstants& constants) {
  const LowbitParams& p = work.p;
  constexpr int64_t kRows = kRowsOf<Bits>;
  alignas(64) int32_t sums[kRows * kLowbitPanel];
  alignas(64) float out[kRows * kLowbitPanel];
  const PanelSink sink = work.sink(panel, constants, kLowbitPanel);
  const void* done = scaled_at_once(p, constants) ? static_cast<const void*>(sums) : out;
  const int64_t tiles = (work.count() + kRows - 1) / kRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = work.count() * tile / tiles, end = work.count() * (tile + 1) / tiles;
    const int64_t rows = end - begin, channels = work.channels(panel);
    work.prefetch_residual(begin, rows, panel * kLowbitPanel, channels);
    work.prefetch_out(begin, rows, panel * kLowbitPanel, channels);
    const IntegerTile part{codes, work.rows.from(p, begin), constants, sums, out};
    multiply_integers<Bits>(p, part, rows);
    sink.take(done, begin, rows, 0, channels);
  }
}

template <int Bits>
void integer_panel(const Work& work, int64_t panel, const uint8_t* codes,
                   const PanelConstants& constants) {
  const LowbitParams& p = work.p;
  if (constants.offset) prepare_offsets<Bits>(p, codes, work.scratch.ones, constants);
#if defined(__AVX512VNNI__)
  // Three bits want more registers than the sums leave; many rows share one expansion.
  constexpr int64_t kWorthExpanding = 32;
  if (Bits == 3 && work.count() >= kWorthExpanding) {
    expand_panel<Bits>(p, codes, work.scratch.codes);
    vector_panel<8>(work, panel, work.scratch.codes, constants);
    return;
  }
#endif
  vector_panel<Bits>(work, panel, codes, constants);
}

#if defined(TAUT_ISA_amx)
// Panels [begin, end), at most p.panels_together, by AMX.
template <int Bits>
void tile_panels(const Work& work, int64_t begin, int64_t end) {
  const LowbitParams& p = work.p;
  PanelConstants constants[kMostPanels];
  PanelSink sinks[kMostPanels];
  const uint8_t* codes = p.packed + begin * p.panel_bytes();
  for (int64_t i = 0; i < end - begin; ++i) {
    const uint8_t* panel = codes + i * p.panel_bytes();
    constants[i] = prepare_constants(p, begin + i, work.scratch.constants + i * p.constants_size());
    if (constants[i].offset) prepare_offsets<Bits>(p, panel, work.scratch.ones, constants[i]);
    if constexpr (Bits < 8) expand_panel<Bits>(p, panel, work.scratch.codes + i * p.code_bytes());
    sinks[i] = work.sink(begin + i, constants[i], kTileBlock);
  }
  if constexpr (Bits < 8) codes = work.scratch.codes;
  const int64_t first = begin * kLowbitPanel, behind = end * kLowbitPanel;
  const int64_t channels = (behind < p.out_features ? behind : p.out_features) - first;
  multiply_by_integer_tiles(
      p, codes, work.rows, constants, work.count(), channels,
      [&](int64_t row, int64_t rows, int64_t channel) __attribute__((always_inline)) {
        work.prefetch_residual(row, rows, first + channel, kTileBlock);
      },
      [&](const void* sums, int64_t row, int64_t rows, int64_t channel) {
        const int64_t left = channels - channel;
        sinks[channel / kLowbitPanel].take(sums, row, rows, channel % kLowbitPanel,
                                           left < kTileBlock ? left : kTileBlock);
      });
}
#endif

template <int Bits>
void float_panel(const Work& work, int64_t panel, const uint8_t* codes,
                 const PanelConstants& constants) {
  const LowbitParams& p = work.p;
  float table[16];
  FloatPanel float_panel{codes, constants, nullptr, prepare_table(p, table)};
  if (p.codebook) {
    prepare_codebook(p, panel, work.scratch.codebook);
    float_panel.codebook = work.scratch.codebook;
  }
  const int64_t first = work.block.row_begin * p.x_stride;
  float* sums = work.scratch.sums;
  if (p.x_type == Element::bf16) {
    multiply_floats<Bits>(p, float_panel, static_cast<const bf16*>(p.x) + first, p.x_stride,
                          work.count(), static_cast<bf16*>(work.scratch.values), sums);
  } else {
    const bool wide = p.x_type == Element::f16;
    const float* x = wide ? work.rows.wide : static_cast<const float*>(p.x) + first;
    multiply_floats<Bits>(p, float_panel, x, wide ? p.in_features : p.x_stride, work.count(),
                          static_cast<float*>(work.scratch.values), sums);
  }
  work.sink(panel, constants, kLowbitPanel).take(sums, 0, work.count(), 0, work.channels(panel));
}

}  // namespace

void lowbit_stage(const LowbitParams& p, int64_t begin, int64_t end, const LowbitRows& rows) {
  if (!p.integer()) {
    if (p.x_type == Element::f16) widen_rows(p, begin, end, rows);
    return;
  }
  if (p.x_type == Element::i8) {
    take_rows(p, begin, end, rows);
  } else {
    with_element(p.x_type,
                 [&](auto element) { quantize_rows<decltype(element)>(p, begin, end, rows); });
  }
  if (!p.zero_point)
    for (int64_t i = 0; i < (end - begin) * p.groups; ++i) rows.sum[i] *= p.common_zero();
  if (p.in_place) return;
  for (int64_t r = 0; r < end - begin; ++r) {
    std::memset(staged_codes(p, rows, r) + p.in_features, 0,
                static_cast<size_t>(p.row_codes() + 64 - p.in_features));
#if defined(TAUT_ISA_avx2)
    if (p.split_x) split_row(rows.codes + r * p.codes_stride(), p.row_codes());
#endif
  }
}

bool lowbit_multiply(const LowbitParams& p, const LowbitBlock& block, const LowbitRows& rows,
                     float* sums, const LowbitScratch& scratch) {
  bool tiles = false;
#if defined(TAUT_ISA_amx)
  tiles = p.integer() && block.row_end - block.row_begin >= kFewestTileRows;
  if (tiles) tile_configure(product_tiles(kTile, tile_depth(p)));
#endif
  if (p.x_zero_point != 0.0f) {
    std::memset(scratch.ones, 1, static_cast<size_t>(p.in_features));
    std::memset(scratch.ones + p.in_features, 0,
                static_cast<size_t>(p.staged_stride() - p.in_features));
  }
  const Work work{p, block, rows, scratch, sums};
  with_width(p.bits, [&](auto width) {
    constexpr int kBits = decltype(width)::value;
#if defined(TAUT_ISA_amx)
    if (tiles) {
      for (int64_t panel = block.panel_begin; panel < block.panel_end; panel += p.panels_together) {
        const int64_t end = panel + p.panels_together;
        tile_panels<kBits>(work, panel, end < block.panel_end ? end : block.panel_end);
      }
      return;
    }
#endif
    for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
      const uint8_t* codes = p.packed + panel * p.panel_bytes();
      const PanelConstants constants = prepare_constants(p, panel, scratch.constants);
      p.integer() ? integer_panel<kBits>(work, panel, codes, constants)
                  : float_panel<kBits>(work, panel, codes, constants);
    }
  });
#if defined(TAUT_ISA_amx)
  if (tiles) tile_release();
#endif
  return tiles;
}

void lowbit_finish(const LowbitParams& p, int64_t begin, int64_t end, float* sums) {
  const int64_t columns = p.out_features;
  const int64_t groups = p.q_group_size ? (columns + p.q_group_size - 1) / p.q_group_size : 1;
  for (int64_t r = begin; r < end; ++r, sums += p.sums_stride()) {
    if (!p.norm) {
      quantize_groups(sums, columns, p.q_group_size, absmax_grid(p.q_bits), p.q + r * columns,
                      p.q_scale + r * groups, static_cast<int32_t*>(nullptr));
      continue;
    }
    with_element(p.out_type, [&](auto element) {
      const float absmax =
          norm_in_place(p, sums, static_cast<decltype(element)*>(p.out) + r * columns);
      if (!p.q) return;
      const Grid grid = absmax_grid(p.q_bits);
      write_codes(sums, columns, absmax, grid, p.q + r * columns);
      p.q_scale[r] = absmax / grid.top;
    });
  }
}

}  // namespace TAUT_ISA
}  // namespace taut
