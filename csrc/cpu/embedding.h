// Parameters and kernels of embed_layer_norm on the CPU.
#pragma once
#include <cstdint>

#include "common/types.h"
#include "cpu/dispatch.h"

namespace taut {

// One of the tables whose rows are added up: contiguous rows, `stride` elements apart. Row `ids[i]`
// belongs to token i; without ids, row 0 belongs to all. A table that is not given has no data.
struct EmbeddingTable {
  const void* data;
  const void* ids;
  int64_t stride, id_stride;
  bool wide_ids;  // int64, not int32
};

constexpr int kEmbeddingTables = 3;  // word, position, token type

// `scratch` holds one fp32 row.
struct EmbedParams {
  EmbeddingTable tables[kEmbeddingTables];
  const float* word_scale;  // of each word row, which is int8 then, or null
  const void* weight;
  const void* norm_bias;
  void* out;
  float* mean;  // or null, with rstd
  float* rstd;
  int64_t columns;
  float eps;
};

using EmbedRows = void(const EmbedParams&, float* scratch, int64_t begin, int64_t end);
TAUT_DECLARE_KERNEL(embed_rows_f32, EmbedRows)
TAUT_DECLARE_KERNEL(embed_rows_bf16, EmbedRows)
TAUT_DECLARE_KERNEL(embed_rows_f16, EmbedRows)

// First step of the gradient: dtotal, fp32 (total_tokens, columns), with respect to the sum of the
// table rows. A kernel call handles one block of kSumRows rows and writes that block's column sums
// to partials[block] = [dweight | dnorm_bias], each `columns` floats.
struct EmbedBackwardParams {
  EmbeddingTable tables[kEmbeddingTables];
  const void* grad_out;
  const void* weight;
  const float* mean;
  const float* rstd;
  float* dtotal;
  float* partials;
  int64_t grad_out_stride;
  int64_t rows, columns;
};

using EmbedBackwardBlock = void(const EmbedBackwardParams&, float* scratch, int64_t block);
TAUT_DECLARE_KERNEL(embed_backward_block_f32, EmbedBackwardBlock)
TAUT_DECLARE_KERNEL(embed_backward_block_bf16, EmbedBackwardBlock)
TAUT_DECLARE_KERNEL(embed_backward_block_f16, EmbedBackwardBlock)

// Second step, for each table: row i of `out` is the sum of dtotal over the tokens
// order[starts[i]] to order[starts[i + 1]], in that order; a contiguous table of `columns` columns.
struct TableGradientParams {
  const float* dtotal;
  const int64_t* starts;
  const int64_t* order;
  void* out;
  int64_t columns;
};

// The part of the table in the given rows and columns; `scratch` holds that many columns.
using TableGradient = void(const TableGradientParams&, float* scratch, int64_t row_begin,
                           int64_t row_end, int64_t column_begin, int64_t column_end);
TAUT_DECLARE_KERNEL(table_gradient_f32, TableGradient)
TAUT_DECLARE_KERNEL(table_gradient_bf16, TableGradient)
TAUT_DECLARE_KERNEL(table_gradient_f16, TableGradient)

}  // namespace taut
