// What happens to the sums of a panel of low-bit weights: scales, bias, activation, residual.
#pragma once
#include "cpu/gemm_epilogue.h"
#include "cpu/isa/columns.h"
#include "cpu/lowbit_gemm_integers.h"

namespace taut {
namespace TAUT_ISA {
namespace {

// Where the sums of a panel go. What happens to them is chosen once, so that taking a part, a few
// rows by a few channels, is one call that looks nothing up. Pointers are those of the block's
// first row and the panel's first channel, rows and channels count from there.
struct PanelSink {
  using Take = void(const PanelSink&, const void* sums, int64_t row, int64_t rows, int64_t channel,
                    int64_t channels);
  Take* take_part;
  PanelConstants constants;
  const int32_t* x_sums;  // of the block's rows
  const float* x_scales;
  const void* residual;
  void* out;
  int64_t sums_stride, residual_stride, out_stride;

  void take(const void* sums, int64_t row, int64_t rows, int64_t channel, int64_t channels) const {
    take_part(*this, sums, row, rows, channel, channels);
  }
};

// A part's sums, of all groups and in fp32.
struct FloatTile {
  const float* sums;
  int64_t stride;

  FloatTile(const PanelSink& sink, const void* sums, int64_t, int64_t)
      : sums(static_cast<const float*>(sums)), stride(sink.sums_stride) {}
  auto column(int64_t c) const {
    return [sums = sums + c, stride = stride](int64_t r) { return Vec::load(sums + r * stride); };
  }
};

// A part's sums in int32, where scaled_at_once.
template <bool kCommonZero>
struct ScaledTile {
  const PanelConstants& constants;
  const int32_t *sums, *x_sums;
  const float* x_scales;
  int64_t channel, stride;

  ScaledTile(const PanelSink& sink, const void* sums, int64_t row, int64_t channel)
      : constants(sink.constants),
        sums(static_cast<const int32_t*>(sums)),
        x_sums(sink.x_sums + row),
        x_scales(sink.x_scales + row),
        channel(channel),
        stride(sink.sums_stride) {}
  auto column(int64_t c) const {
    return [scales = Scales<kCommonZero>(constants, channel + c), sums = sums + c, x_sums = x_sums,
            x_scales = x_scales, stride = stride](int64_t r) {
      return scales.centred(load_ints(sums + r * stride), x_sums[r]) * scales.scale(x_scales[r]);
    };
  }
};

// out = activation(sums + bias) + residual. Residual: void where there is none.
template <class Tile, class Function, class Residual, class Out>
void take_part(const PanelSink& sink, const void* sums, int64_t row, int64_t rows, int64_t channel,
               int64_t channels) {
  const Tile tile(sink, sums, row, channel);
  const float* bias = sink.constants.bias + channel;
  const int64_t out_stride = sink.out_stride;
  Out* out = static_cast<Out*>(sink.out) + row * out_stride + channel;
  for_columns(channels, [&](int64_t c, int n) {
    const Vec shift = Vec::load(bias + c);
    const auto sum = tile.column(c);
    for (int64_t r = 0; r < rows; ++r) {
      Vec v = Function::apply(sum(r) + shift);
      if constexpr (!std::is_void_v<Residual>) {
        const int64_t place = (row + r) * sink.residual_stride + channel + c;
        v = v + load(static_cast<const Residual*>(sink.residual) + place, n);
      }
      store(v, out + r * out_stride + c, n);
    }
  });
}

// To p.out, or to fp32 that is normalized or quantized next.
template <class Tile>
PanelSink::Take* take_part_of(const LowbitParams& p, bool finishes) {
  PanelSink::Take* chosen = nullptr;
  if (finishes && p.residual) {
    with_element(p.residual_type, [&](auto element) {
      chosen = take_part<Tile, Identity, decltype(element), float>;
    });
  } else if (finishes) {
    // What is quantized next need not be more accurate than bf16.
    with_activation<bf16>(p.activation, [&](auto function) {
      chosen = take_part<Tile, decltype(function), void, float>;
    });
  } else {
    with_element(p.out_type, [&](auto element) {
      using T = decltype(element);
      with_activation<T>(p.activation, [&](auto function) {
        using Function = decltype(function);
        chosen = p.residual ? take_part<Tile, Function, T, T> : take_part<Tile, Function, void, T>;
      });
    });
  }
  return chosen;
}

}  // namespace
}  // namespace TAUT_ISA
}  // namespace taut
