// Launchers of the packed linear layers on the CPU.
#include "cpu/dense_gemm.h"

#include <algorithm>
#include <string>

#include "cpu/gemm_tasks.h"
#include "cpu/launchers.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"
#include "cpu/transpose_words.h"

namespace taut {
namespace {

VariantRecord linear_variant("packed_linear");
VariantRecord linear_layer_norm_variant("packed_linear_layer_norm");

// ---- packing: a permutation of elements, the same for every instruction set

// k per step of a panel: one, or a pair of bf16, which its products take together.
int64_t step_of(ScalarType dtype, const char* op, const char* name) {
  if (dtype == ScalarType::BFloat16) return 2;
  if (dtype != ScalarType::Float && dtype != ScalarType::Half)
    check(false, op, name, " must be float32, bfloat16, float16, got ", dtype_name(dtype));
  return 1;
}

// An element of so many bytes, `Step` k per step of a panel.
template <class Element, int Step>
struct Layout {
  using Bits = Element;
  static constexpr int kStep = Step;
  // Whether a step of a channel is a word on either side: a panel is then a transposed matrix.
  static bool is_words(const void* weight, int64_t channel_stride, int64_t depth) {
    const auto whole = [](uint64_t bytes) { return bytes % sizeof(float) == 0; };
    return Step * sizeof(Bits) == sizeof(float) && depth % Step == 0 &&
           whole(reinterpret_cast<uintptr_t>(weight)) &&
           whole(static_cast<uint64_t>(channel_stride) * sizeof(Bits));
  }
  // Where element (channel, k) of a weight of so many steps lies in its packed form.
  static int64_t place(int64_t steps, int64_t channel, int64_t k) {
    const int64_t row = channel / kPanel * steps + k / Step;
    return (row * kPanel + channel % kPanel) * Step + k % Step;
  }
};

template <class Body>
void with_layout(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float: return body(Layout<uint32_t, 1>{});
    case ScalarType::BFloat16: return body(Layout<uint16_t, 2>{});
    default: return body(Layout<uint16_t, 1>{});
  }
}

// body(channel, k) for all of both, some k of a panel at a time: a panel has a row per k, a weight
// one per channel, and the lines of either stay in L1.
template <class Body>
void for_panels(int64_t begin, int64_t end, int64_t depth, const Body& body) {
  constexpr int64_t kLine = 16;
  for (int64_t panel = begin; panel < end; panel += kPanel)
    for (int64_t first = 0; first < depth; first += kLine)
      for (int64_t channel = panel; channel < std::min(panel + kPanel, end); ++channel)
        for (int64_t k = first; k < std::min(first + kLine, depth); ++k) body(channel, k);
}

Tensor pack_weight(const Tensor& weight) {
  const char* op = "pack_weight";
  check_cpu(weight, op, "weight");
  check(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) > 0, op,
        "weight must be (out_features, in_features), at least one of each, got ", shape_of(weight));
  const ScalarType dtype = weight.scalar_type();
  const int64_t step = step_of(dtype, op, "weight");
  const int64_t channels = weight.size(0), depth = weight.size(1);
  const int64_t panels = divide_up(channels, kPanel), steps = divide_up(depth, step);
  TransposeWords* transpose = TAUT_KERNEL(transpose_words);
  Tensor packed = step == 1 ? empty_cpu({panels, steps, kPanel}, dtype)
                            : empty_cpu({panels, steps, kPanel, 2}, dtype);
  with_layout(dtype, [&](auto layout) {
    using Bits = typename decltype(layout)::Bits;
    constexpr int64_t kBytes = sizeof(Bits);
    const Bits* from = static_cast<const Bits*>(weight.const_data_ptr());
    Bits* to = static_cast<Bits*>(packed.mutable_data_ptr());
    const int64_t channel_stride = weight.stride(0), k_stride = weight.stride(1);
    const bool words = k_stride == 1 && layout.is_words(from, channel_stride, depth);
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      const int64_t last = std::min(end * kPanel, channels);
      if (last < end * kPanel || depth < steps * step)
        std::fill(to + begin * steps * kPanel * step, to + end * steps * kPanel * step, Bits{0});
      for (int64_t panel = begin; words && panel < end; ++panel) {
        const int64_t first = panel * kPanel;
        transpose(from + first * channel_stride, channel_stride * kBytes, to + first * steps * step,
                  kPanel * step * kBytes, std::min(kPanel, channels - first), steps);
      }
      if (words) return;
      for_panels(begin * kPanel, last, depth, [&](int64_t channel, int64_t k) {
        to[layout.place(steps, channel, k)] = from[channel * channel_stride + k * k_stride];
      });
    });
  });
  return packed;
}

void check_packed(const Tensor& packed, int64_t channels, int64_t depth, ScalarType dtype,
                  const char* op) {
  const int64_t step = step_of(dtype, op, "packed");
  check_cpu(packed, op, "packed");
  check_dtype(packed, dtype, op, "packed");
  check(channels > 0 && depth > 0, op, "out_features and in_features must be at least 1, got ",
        channels, " and ", depth);
  const bool fits = packed.dim() == 2 + step && packed.size(0) == divide_up(channels, kPanel) &&
                    packed.size(1) == divide_up(depth, step) && packed.size(2) == kPanel &&
                    (step == 1 || packed.size(3) == 2);
  if (!fits)
    check(false, op, "packed must be pack_weight of a (", channels, ", ", depth, ") weight, got ",
          shape_of(packed));
  check(packed.is_contiguous(), op, "packed must be contiguous");
}

Tensor unpack_weight(const Tensor& packed, int64_t channels, int64_t depth) {
  const char* op = "unpack_weight";
  const ScalarType dtype = packed.scalar_type();
  check_packed(packed, channels, depth, dtype, op);
  TransposeWords* transpose = TAUT_KERNEL(transpose_words);
  Tensor weight = empty_cpu({channels, depth}, dtype);
  with_layout(dtype, [&](auto layout) {
    using Bits = typename decltype(layout)::Bits;
    constexpr int64_t kBytes = sizeof(Bits);
    const int64_t steps = divide_up(depth, layout.kStep);
    const Bits* from = static_cast<const Bits*>(packed.const_data_ptr());
    Bits* to = static_cast<Bits*>(weight.mutable_data_ptr());
    const bool words = layout.is_words(to, depth, depth);
    torch::stable::parallel_for(0, divide_up(channels, kPanel), 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; words && panel < end; ++panel) {
        const int64_t first = panel * kPanel;
        transpose(from + first * steps * layout.kStep, kPanel * layout.kStep * kBytes,
                  to + first * depth, depth * kBytes, steps, std::min(kPanel, channels - first));
      }
      if (words) return;
      for_panels(begin * kPanel, std::min(end * kPanel, channels), depth,
                 [&](int64_t channel, int64_t k) {
                   to[channel * depth + k] = from[layout.place(steps, channel, k)];
                 });
    });
  });
  return weight;
}

// ---- the product

struct Launch {
  GemmParams params{};
  int64_t rows;
  ScalarType dtype;
  bool tiles;       // AMX
  int64_t threads;  // 1 where the work is not worth waking others

  RowSplit split(int64_t most_rows, int64_t multiple) const {
    return split_rows(rows, tiles ? 32 : 6, most_rows, multiple);
  }
};

// Checks x, packed and bias, and fills in what both ops share.
Launch prepare(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
               int64_t out_features, const char* op) {
  check_cpu(x, op, "x");
  if (x.dim() != 2) check(false, op, "x must be (total_tokens, in_features), got ", shape_of(x));
  const ScalarType dtype = x.scalar_type();
  step_of(dtype, op, "x");
  const int64_t depth = x.size(1);
  check(has_contiguous_rows(x), op, "x must have contiguous rows");
  check_packed(packed, out_features, depth, dtype, op);
  const bool bias_is_f32 = bias && bias->scalar_type() == ScalarType::Float;
  if (bias) check_vector(*bias, out_features, bias_is_f32 ? ScalarType::Float : dtype, op, "bias");

  Launch launch;
  launch.rows = x.size(0);
  launch.dtype = dtype;
  launch.tiles = dtype == ScalarType::BFloat16 && active_isa() >= Isa::amx;
  constexpr int64_t kWorthTwoThreads = 64 * 1024;  // multiply-adds, about 2 us of one core
  const bool small = launch.rows * depth * out_features < kWorthTwoThreads;
  launch.threads = small ? 1 : torch::stable::get_num_threads();
  GemmParams& p = launch.params;
  p.x = x.const_data_ptr();
  p.packed = packed.const_data_ptr();
  p.bias = bias ? bias->const_data_ptr() : nullptr;
  p.bias_is_f32 = bias_is_f32;
  p.x_stride = x.stride(0);
  p.in_features = depth;
  p.out_features = out_features;
  return launch;
}

// Runs body(block) over rows x panels, cut finely enough that threads end together.
template <class Body>
void run_blocks(const Launch& launch, const Body& body) {
  constexpr int64_t kTasksPerThread = 16;
  const GemmParams& p = launch.params;
  if (launch.rows == 0) return;
  // Vectors: a panel passes over so many rows that fetching it costs nothing. Tiles are faster than
  // a shared cache: the rows, up to 1 MiB, stay in L2 while the panels pass by.
  const int64_t in_l2 = (1 << 20) / (2 * p.in_features);
  const RowSplit split =
      launch.split(launch.tiles ? std::clamp<int64_t>(in_l2, 32, kMaxGemmRows) : 96, 1);
  const int64_t panels = p.panels();
  const int64_t wanted = divide_up(launch.threads * kTasksPerThread, split.blocks);
  const int64_t most = launch.threads == 1 ? panels : std::max<int64_t>(1, panels / wanted);
  const int64_t groups = divide_up(panels, most);
  run_tasks(split.blocks * groups, launch.threads, [&](int64_t task, int64_t) {
    const int64_t block = task / groups, group = task % groups;
    body(GemmBlock{split.begin(block), split.begin(block + 1), panels * group / groups,
                   panels * (group + 1) / groups});
  });
}

}  // namespace

Tensor packed_linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                     int64_t out_features, const std::string& activation) {
  const char* op = "packed_linear";
  Launch launch = prepare(x, packed, bias, out_features, op);
  GemmParams& p = launch.params;
  p.activation = parse_activation(activation, op);
  Tensor out = empty_cpu({launch.rows, out_features}, launch.dtype);
  p.out = out.mutable_data_ptr();
  GemmLinear* kernel = float_kernel(launch.dtype, op, "x", TAUT_KERNEL(gemm_linear_f32),
                                    TAUT_KERNEL(gemm_linear_bf16), TAUT_KERNEL(gemm_linear_f16));
  run_blocks(launch, [&](const GemmBlock& block) { kernel(p, block); });
  linear_variant.record(launch.tiles ? "tiles" : nullptr);
  return out;
}

Tensor packed_linear_layer_norm(const Tensor& x, const Tensor& packed,
                                const std::optional<Tensor>& bias, const Tensor& residual,
                                const std::optional<Tensor>& weight,
                                const std::optional<Tensor>& norm_bias, double eps) {
  const char* op = "packed_linear_layer_norm";
  if (residual.dim() != 2)
    check(false, op, "residual must be (total_tokens, out_features), got ", shape_of(residual));
  const int64_t columns = residual.size(1);
  Launch launch = prepare(x, packed, bias, columns, op);
  check_rows(residual, launch.rows, columns, launch.dtype, op, "residual");
  if (weight) check_vector(*weight, columns, launch.dtype, op, "weight");
  if (norm_bias) check_vector(*norm_bias, columns, launch.dtype, op, "norm_bias");

  GemmParams& p = launch.params;
  Tensor out = empty_cpu({launch.rows, columns}, launch.dtype);
  p.out = out.mutable_data_ptr();
  p.residual = residual.const_data_ptr();
  p.residual_stride = residual.stride(0);
  p.weight = data_or_null<void>(weight);
  p.norm_bias = data_or_null<void>(norm_bias);
  p.eps = static_cast<float>(eps);
  GemmSums* sums_kernel = float_kernel(launch.dtype, op, "x", TAUT_KERNEL(gemm_sums_f32),
                                       TAUT_KERNEL(gemm_sums_bf16), TAUT_KERNEL(gemm_sums_f16));
  GemmNorm* norm_kernel = float_kernel(launch.dtype, op, "x", TAUT_KERNEL(gemm_norm_f32),
                                       TAUT_KERNEL(gemm_norm_bf16), TAUT_KERNEL(gemm_norm_f16));

  // Rows whose sums stay in L2 until they are normalised.
  const int64_t rows_in_l2 = launch.tiles ? 256 : 48;
  const int64_t stride = p.sums_stride();
  if (launch.rows < rows_in_l2 * launch.threads) {
    // Too few rows to share out: threads share the panels, then the rows.
    const LaunchScratch scratch(launch.rows * stride);
    float* sums = scratch.data;
    run_blocks(launch, [&](const GemmBlock& block) {
      sums_kernel(p, block, sums + block.row_begin * stride);
    });
    parallel_rows(launch.rows, stride, [&](int64_t begin, int64_t end) {
      norm_kernel(p, begin, end, sums + begin * stride);
    });
  } else {
    const RowSplit split = launch.split(rows_in_l2, launch.threads);
    const LaunchScratch scratch(launch.threads * rows_in_l2 * stride);
    run_tasks(split.blocks, launch.threads, [&](int64_t task, int64_t worker) {
      float* mine = scratch.data + worker * rows_in_l2 * stride;
      const int64_t begin = split.begin(task), end = split.begin(task + 1);
      sums_kernel(p, GemmBlock{begin, end, 0, p.panels()}, mine);
      norm_kernel(p, begin, end, mine);
    });
  }
  linear_layer_norm_variant.record(launch.tiles ? "tiles" : nullptr);
  return out;
}

}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&taut::pack_weight));
  m.impl("unpack_weight", TORCH_BOX(&taut::unpack_weight));
  m.impl("packed_linear", TORCH_BOX(&taut::packed_linear));
  m.impl("packed_linear_layer_norm", TORCH_BOX(&taut::packed_linear_layer_norm));
}
