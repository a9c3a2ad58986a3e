// Launchers of embed_layer_norm on the CPU.
#include "cpu/embedding.h"

#include <vector>

#include "cpu/column_sums_launcher.h"
#include "cpu/indices.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

using Optional = std::optional<Tensor>;

VariantRecord embed_variant("embed_layer_norm");
VariantRecord lowbit_embed_variant("lowbit_embed_layer_norm");
VariantRecord embed_backward_variant("embed_layer_norm_backward");

// A table below this many rows is shared out by columns when its gradient is summed.
constexpr int64_t kFewRows = 64;
constexpr int64_t kColumnsPerTask = 128;

void check_table(const Tensor& table, int64_t columns, ScalarType dtype, const char* op,
                 const char* name) {
  check_cpu(table, op, name);
  if (table.dim() != 2 || table.size(1) != columns)
    check(false, op, name, " must have shape (rows, ", columns, "), got ", shape_of(table));
  check_rows(table, table.size(0), columns, dtype, op, name);
}

EmbeddingTable table_of(const Tensor& table, const Optional& ids) {
  EmbeddingTable t{};
  t.data = table.const_data_ptr();
  t.stride = table.stride(0);
  if (ids) {
    t.ids = ids->const_data_ptr();
    t.id_stride = ids->stride(0);
    t.wide_ids = ids->scalar_type() == ScalarType::Long;
  }
  return t;
}

// Checks every id against its table before anything is read through it. All but `word` are `dtype`.
void check_embed(const char* op, ScalarType dtype, const Tensor& input_ids,
                 const Optional& positions, const Optional& token_type_ids, const Tensor& word,
                 const Optional& position, const Optional& token_type, const Optional& weight,
                 const Optional& norm_bias, EmbeddingTable* tables) {
  if (input_ids.dim() != 1)
    check(false, op, "input_ids must be (total_tokens,), got ", shape_of(input_ids));
  if (word.dim() != 2) check(false, op, "word must be (vocabulary, columns), got ", shape_of(word));
  const int64_t tokens = input_ids.size(0), columns = word.size(1);
  check(columns > 0, op, "word must have at least one column");
  check_table(word, columns, word.scalar_type(), op, "word");
  check_indices(input_ids, tokens, word.size(0), op, "input_ids");
  tables[0] = table_of(word, input_ids);

  check(positions.has_value() == position.has_value(), op,
        "position and positions must be given together, got one of them");
  if (position) {
    check_table(*position, columns, dtype, op, "position");
    check_indices(*positions, tokens, position->size(0), op, "positions");
    tables[1] = table_of(*position, positions);
  }
  check(token_type || !token_type_ids, op, "token_type must be given with token_type_ids");
  if (token_type) {
    check_table(*token_type, columns, dtype, op, "token_type");
    check(token_type->size(0) > 0, op, "token_type must have at least one row");
    if (token_type_ids)
      check_indices(*token_type_ids, tokens, token_type->size(0), op, "token_type_ids");
    tables[2] = table_of(*token_type, token_type_ids);
  }
  if (weight) check_vector(*weight, columns, dtype, op, "weight");
  if (norm_bias) check_vector(*norm_bias, columns, dtype, op, "norm_bias");
}

EmbedRows* rows_kernel(ScalarType dtype, const char* op, const char* name) {
  return float_kernel(dtype, op, name, TAUT_KERNEL(embed_rows_f32), TAUT_KERNEL(embed_rows_bf16),
                      TAUT_KERNEL(embed_rows_f16));
}

// Everything but tables, word_scale, mean and rstd.
Tensor run_embed(EmbedParams& p, EmbedRows* kernel, int64_t rows, int64_t columns, ScalarType dtype,
                 const Optional& weight, const Optional& norm_bias, double eps) {
  Tensor out = empty_cpu({rows, columns}, dtype);
  p.weight = data_or_null(weight);
  p.norm_bias = data_or_null(norm_bias);
  p.out = out.mutable_data_ptr();
  p.columns = columns;
  p.eps = static_cast<float>(eps);
  parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
    kernel(p, thread_scratch(columns), begin, end);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> embed_layer_norm(
    const Tensor& input_ids, const Optional& positions, const Optional& token_type_ids,
    const Tensor& word, const Optional& position, const Optional& token_type,
    const Optional& weight, const Optional& norm_bias, double eps) {
  const char* op = "embed_layer_norm";
  const ScalarType dtype = word.scalar_type();
  EmbedRows* kernel = rows_kernel(dtype, op, "word");
  EmbedParams p{};
  check_embed(op, dtype, input_ids, positions, token_type_ids, word, position, token_type, weight,
              norm_bias, p.tables);
  const int64_t rows = input_ids.size(0);
  Tensor mean = empty_cpu({rows}, ScalarType::Float);
  Tensor rstd = empty_cpu({rows}, ScalarType::Float);
  p.mean = floats_of(mean);
  p.rstd = floats_of(rstd);
  Tensor out = run_embed(p, kernel, rows, word.size(1), dtype, weight, norm_bias, eps);
  embed_variant.record();
  return {std::move(out), std::move(mean), std::move(rstd)};
}

Tensor lowbit_embed_layer_norm(const Tensor& input_ids, const Optional& positions,
                               const Optional& token_type_ids, const Tensor& word,
                               const Tensor& word_scale, const Optional& position,
                               const Optional& token_type, const Tensor& weight,
                               const Optional& norm_bias, double eps) {
  const char* op = "lowbit_embed_layer_norm";
  const ScalarType dtype = weight.scalar_type();
  EmbedRows* kernel = rows_kernel(dtype, op, "weight");
  check_dtype(word, ScalarType::Char, op, "word");
  EmbedParams p{};
  const Optional affine = weight;
  check_embed(op, dtype, input_ids, positions, token_type_ids, word, position, token_type, affine,
              norm_bias, p.tables);
  check_rows(word_scale, word.size(0), 1, ScalarType::Float, op, "word_scale");
  check(word_scale.is_contiguous(), op, "word_scale must be contiguous");
  p.word_scale = static_cast<const float*>(word_scale.const_data_ptr());
  Tensor out = run_embed(p, kernel, input_ids.size(0), word.size(1), dtype, affine, norm_bias, eps);
  lowbit_embed_variant.record();
  return out;
}

// The gradient of one table: tokens are sorted by table row, keeping their order (a counting
// sort), then every row is summed by one thread and written once.
Tensor sum_into_table(const Tensor& dtotal, const Optional& table, const Optional& ids,
                      ScalarType dtype) {
  if (!table) return empty_cpu({0}, dtype);
  const int64_t tokens = dtotal.size(0), rows = table->size(0), columns = table->size(1);
  std::vector<int64_t> starts(static_cast<size_t>(rows) + 1, 0);
  std::vector<int64_t> order(static_cast<size_t>(tokens));
  if (ids) {
    with_indices(*ids, [&](const auto* id, int64_t stride) {
      for (int64_t i = 0; i < tokens; ++i) ++starts[id[i * stride] + 1];
      for (int64_t row = 0; row < rows; ++row) starts[row + 1] += starts[row];
      std::vector<int64_t> next(starts.begin(), starts.end() - 1);
      for (int64_t i = 0; i < tokens; ++i) order[next[id[i * stride]]++] = i;
    });
  } else {
    for (int64_t i = 0; i < tokens; ++i) order[i] = i;
    for (int64_t row = 0; row < rows; ++row) starts[row + 1] = tokens;
  }

  Tensor out = empty_cpu({rows, columns}, dtype);
  const TableGradientParams p{static_cast<const float*>(dtotal.const_data_ptr()), starts.data(),
                              order.data(), out.mutable_data_ptr(), columns};
  TableGradient* kernel =
      float_kernel(dtype, "embed_layer_norm_backward", "word", TAUT_KERNEL(table_gradient_f32),
                   TAUT_KERNEL(table_gradient_bf16), TAUT_KERNEL(table_gradient_f16));
  if (rows < kFewRows) {
    parallel_tasks((columns + kColumnsPerTask - 1) / kColumnsPerTask, [&](int64_t task) {
      const int64_t begin = task * kColumnsPerTask;
      const int64_t end = std::min(columns, begin + kColumnsPerTask);
      kernel(p, thread_scratch(kColumnsPerTask), 0, rows, begin, end);
    });
  } else {
    parallel_tasks((rows + kFewRows - 1) / kFewRows, [&](int64_t task) {
      const int64_t begin = task * kFewRows, end = std::min(rows, begin + kFewRows);
      kernel(p, thread_scratch(columns), begin, end, 0, columns);
    });
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embed_layer_norm_backward(
    const Tensor& grad_out, const Tensor& input_ids, const Optional& positions,
    const Optional& token_type_ids, const Tensor& word, const Optional& position,
    const Optional& token_type, const Optional& weight, const Tensor& mean, const Tensor& rstd) {
  const char* op = "embed_layer_norm_backward";
  const ScalarType dtype = word.scalar_type();
  EmbedBackwardBlock* kernel =
      float_kernel(dtype, op, "word", TAUT_KERNEL(embed_backward_block_f32),
                   TAUT_KERNEL(embed_backward_block_bf16), TAUT_KERNEL(embed_backward_block_f16));
  EmbedBackwardParams p{};
  check_embed(op, dtype, input_ids, positions, token_type_ids, word, position, token_type, weight,
              std::nullopt, p.tables);
  const int64_t rows = input_ids.size(0), columns = word.size(1);
  check_rows(grad_out, rows, columns, dtype, op, "grad_out");
  check_vector(mean, rows, ScalarType::Float, op, "mean");
  check_vector(rstd, rows, ScalarType::Float, op, "rstd");

  const int64_t blocks = sum_blocks(rows);
  Tensor dtotal = empty_cpu({rows, columns}, ScalarType::Float);
  Tensor partials = empty_cpu({blocks, 2 * columns}, ScalarType::Float);
  p.grad_out = grad_out.const_data_ptr();
  p.weight = data_or_null(weight);
  p.mean = static_cast<const float*>(mean.const_data_ptr());
  p.rstd = static_cast<const float*>(rstd.const_data_ptr());
  p.dtotal = floats_of(dtotal);
  p.partials = floats_of(partials);
  p.grad_out_stride = grad_out.stride(0);
  p.rows = rows;
  p.columns = columns;
  for_sum_blocks(rows, columns, columns,
                 [&](float* scratch, int64_t block) { kernel(p, scratch, block); });
  const auto sums = [&](int64_t kind) {
    return add_column_sums(p.partials + kind * columns, blocks, 2 * columns, columns, dtype);
  };
  embed_backward_variant.record();
  return {sum_into_table(dtotal, word, input_ids, dtype),
          sum_into_table(dtotal, position, positions, dtype),
          sum_into_table(dtotal, token_type, token_type_ids, dtype), sums(0), sums(1)};
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("embed_layer_norm", TORCH_BOX(&taut::embed_layer_norm));
  m.impl("lowbit_embed_layer_norm", TORCH_BOX(&taut::lowbit_embed_layer_norm));
  m.impl("embed_layer_norm_backward", TORCH_BOX(&taut::embed_layer_norm_backward));
}
