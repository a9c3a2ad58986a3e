// Sum of table rows + LayerNorm, one pass over each token, and its gradient.
#include "cpu/embedding.h"

#include "cpu/column_sums.h"
#include "cpu/norm_row.h"

namespace taut {
namespace TAUT_ISA {
namespace {

inline int64_t row_of(const EmbeddingTable& table, int64_t token) {
  if (!table.ids) return 0;
  const int64_t at = token * table.id_stride;
  return table.wide_ids ? static_cast<const int64_t*>(table.ids)[at]
                        : static_cast<const int32_t*>(table.ids)[at];
}

template <class T>
inline const T* table_row(const EmbeddingTable& table, int64_t token) {
  if (table.data == nullptr) return nullptr;
  return static_cast<const T*>(table.data) + row_of(table, token) * table.stride;
}

// Adds up the token's table rows into `row`; returns the lane-wise sum of it.
template <class T>
inline Vec sum_tables(const EmbeddingTable* tables, const float* word_scale, int64_t token,
                      int64_t columns, float* row) {
  const T* word = word_scale ? nullptr : table_row<T>(tables[0], token);
  if (word_scale) {
    const int8_t* codes = table_row<int8_t>(tables[0], token);
    const float scale = word_scale[row_of(tables[0], token)];
    for (int64_t c = 0; c < columns; ++c) row[c] = static_cast<float>(codes[c]) * scale;
  }
  const T* position = table_row<T>(tables[1], token);
  const T* token_type = table_row<T>(tables[2], token);
  Vec total = Vec::zero();
  for_columns(columns, [&](int64_t c, int n) {
    Vec v = word ? load(word + c, n) : load(row + c, n);
    if (position) v = v + load(position + c, n);
    if (token_type) v = v + load(token_type + c, n);
    store(v, row + c, n);
    total = total + v;
  });
  return total;
}

template <class T>
void embed_rows(const EmbedParams& p, float* row, int64_t begin, int64_t end) {
  const T* weight = static_cast<const T*>(p.weight);
  const T* norm_bias = static_cast<const T*>(p.norm_bias);
  for (int64_t r = begin; r < end; ++r) {
    const Vec total = sum_tables<T>(p.tables, p.word_scale, r, p.columns, row);
    const Moments moments = moments_of(row, p.columns, total, false, p.eps);
    if (p.mean) {
      p.mean[r] = moments.mean;
      p.rstd[r] = moments.rstd;
    }
    write_normalized(row, p.columns, moments, weight, norm_bias,
                     static_cast<T*>(p.out) + r * p.columns);
  }
}

template <class T>
void embed_backward_block(const EmbedBackwardParams& p, float* row, int64_t block) {
  const int64_t columns = p.columns;
  const T* weight = static_cast<const T*>(p.weight);
  float* dweight = p.partials + block * 2 * columns;
  float* dnorm_bias = dweight + columns;
  std::memset(dweight, 0, static_cast<size_t>(2 * columns) * sizeof(float));

  const int64_t end = (block + 1) * kSumRows < p.rows ? (block + 1) * kSumRows : p.rows;
  for (int64_t r = block * kSumRows; r < end; ++r) {
    sum_tables<T>(p.tables, nullptr, r, columns, row);
    float* dtotal = p.dtotal + r * columns;
    norm_gradient(row, columns, {p.mean[r], p.rstd[r]}, false,
                  static_cast<const T*>(p.grad_out) + r * p.grad_out_stride, weight,
                  weight ? dweight : nullptr, dnorm_bias,
                  [&](int64_t c, int n, Vec v) { store(v, dtotal + c, n); });
  }
}

template <class T>
void table_gradient(const TableGradientParams& p, float* sum, int64_t row_begin, int64_t row_end,
                    int64_t column_begin, int64_t column_end) {
  const int64_t columns = column_end - column_begin;
  for (int64_t row = row_begin; row < row_end; ++row) {
    T* out = static_cast<T*>(p.out) + row * p.columns + column_begin;
    const int64_t begin = p.starts[row], end = p.starts[row + 1];
    if (begin == end) {
      std::memset(out, 0, static_cast<size_t>(columns) * sizeof(T));
      continue;
    }
    std::memset(sum, 0, static_cast<size_t>(columns) * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      const float* gradient = p.dtotal + p.order[i] * p.columns + column_begin;
      for_columns(columns, [&](int64_t c, int n) {
        store(load(sum + c, n) + load(gradient + c, n), sum + c, n);
      });
    }
    for_columns(columns, [&](int64_t c, int n) { store(load(sum + c, n), out + c, n); });
  }
}

}  // namespace

void embed_rows_f32(const EmbedParams& p, float* scratch, int64_t begin, int64_t end) {
  embed_rows<float>(p, scratch, begin, end);
}
void embed_rows_bf16(const EmbedParams& p, float* scratch, int64_t begin, int64_t end) {
  embed_rows<bf16>(p, scratch, begin, end);
}
void embed_rows_f16(const EmbedParams& p, float* scratch, int64_t begin, int64_t end) {
  embed_rows<f16>(p, scratch, begin, end);
}

void embed_backward_block_f32(const EmbedBackwardParams& p, float* scratch, int64_t block) {
  embed_backward_block<float>(p, scratch, block);
}
void embed_backward_block_bf16(const EmbedBackwardParams& p, float* scratch, int64_t block) {
  embed_backward_block<bf16>(p, scratch, block);
}
void embed_backward_block_f16(const EmbedBackwardParams& p, float* scratch, int64_t block) {
  embed_backward_block<f16>(p, scratch, block);
}

void table_gradient_f32(const TableGradientParams& p, float* scratch, int64_t row_begin,
                        int64_t row_end, int64_t column_begin, int64_t column_end) {
  table_gradient<float>(p, scratch, row_begin, row_end, column_begin, column_end);
}
void table_gradient_bf16(const TableGradientParams& p, float* scratch, int64_t row_begin,
                         int64_t row_end, int64_t column_begin, int64_t column_end) {
  table_gradient<bf16>(p, scratch, row_begin, row_end, column_begin, column_end);
}
void table_gradient_f16(const TableGradientParams& p, float* scratch, int64_t row_begin,
                        int64_t row_end, int64_t column_begin, int64_t column_end) {
  table_gradient<f16>(p, scratch, row_begin, row_end, column_begin, column_end);
}

}  // namespace TAUT_ISA
}  // namespace taut
