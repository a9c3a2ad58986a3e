// Launchers of the packing ops on the CPU.
#include "cpu/packing.h"

#include <limits>

#include "cpu/indices.h"
#include "cpu/tensor.h"

namespace taut {
namespace {

VariantRecord pack_mask_variant("pack_mask");
VariantRecord pack_lengths_variant("pack_lengths");
VariantRecord gather_rows_variant("gather_rows");
VariantRecord scatter_rows_variant("scatter_rows");

using Packing = std::tuple<Tensor, Tensor, Tensor>;

int32_t* ints_of(const Tensor& t) { return static_cast<int32_t*>(t.mutable_data_ptr()); }

void check_padded_rows(const char* op, int64_t batch, int64_t length) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (length > 0 && batch > kMost / length)
    check(false, op, "batch * length must be below 2**31, got ", batch, " * ", length);
}

// Counts from offsets[1] on become offsets; then the tensors of that many tokens.
Packing packing_of_counts(Tensor cu_seqlens) {
  int32_t* offsets = ints_of(cu_seqlens);
  const int64_t batch = cu_seqlens.size(0) - 1;
  offsets[0] = 0;
  for (int64_t i = 0; i < batch; ++i) offsets[i + 1] += offsets[i];
  Tensor indices = empty_cpu({offsets[batch]}, ScalarType::Int);
  Tensor positions = empty_cpu({offsets[batch]}, ScalarType::Int);
  return {std::move(cu_seqlens), std::move(indices), std::move(positions)};
}

// log2 of the element size, and the bits that make an element nonzero.
std::pair<int, uint64_t> mask_bits(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char: return {0, 0xff};
    case ScalarType::Short: return {1, 0xffff};
    case ScalarType::Int: return {2, 0xffffffff};
    case ScalarType::Long: return {3, ~uint64_t{0}};
    case ScalarType::Half:
    case ScalarType::BFloat16: return {1, 0x7fff};
    case ScalarType::Float: return {2, 0x7fffffff};
    case ScalarType::Double: return {3, ~uint64_t{0} >> 1};
    default:
      check(false, op, "attention_mask must be bool, integer or float, got ", dtype_name(dtype));
      return {};
  }
}

Packing pack_mask(const Tensor& attention_mask) {
  const char* op = "pack_mask";
  if (attention_mask.dim() != 2)
    check(false, op, "attention_mask must be (batch, length), got ", shape_of(attention_mask));
  const int64_t batch = attention_mask.size(0), length = attention_mask.size(1);
  check_padded_rows(op, batch, length);
  const auto [log2_bytes, value_bits] = mask_bits(op, attention_mask.scalar_type());
  const char* data = static_cast<const char*>(attention_mask.const_data_ptr());
  const int64_t row_bytes = attention_mask.stride(0) << log2_bytes;
  MaskRow shape{};
  shape.stride = attention_mask.stride(1);
  shape.length = length;
  shape.log2_bytes = log2_bytes;
  shape.value_bits = value_bits;
  const auto mask_row = [&](int64_t i) {
    MaskRow row = shape;
    row.data = data + i * row_bytes;
    return row;
  };

  Tensor cu_seqlens = empty_cpu({batch + 1}, ScalarType::Int);
  int32_t* offsets = ints_of(cu_seqlens);
  CountKept* count = TAUT_KERNEL(count_kept);
  parallel_rows(batch, length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) offsets[i + 1] = static_cast<int32_t>(count(mask_row(i)));
  });
  Packing packing = packing_of_counts(std::move(cu_seqlens));
  int32_t* indices = ints_of(std::get<1>(packing));
  int32_t* positions = ints_of(std::get<2>(packing));
  WriteKept* write = TAUT_KERNEL(write_kept);
  parallel_rows(batch, length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      write(mask_row(i), i * length, indices + offsets[i], positions + offsets[i]);
  });
  pack_mask_variant.record();
  return packing;
}

Packing pack_lengths(const Tensor& lengths, int64_t padded_length) {
  const char* op = "pack_lengths";
  if (lengths.dim() != 1) check(false, op, "lengths must be (batch,), got ", shape_of(lengths));
  check(padded_length >= 0, op, "padded_length must not be negative, got ", padded_length);
  const int64_t batch = lengths.size(0);
  check_padded_rows(op, batch, padded_length);
  const ScalarType dtype = lengths.scalar_type();
  if (dtype != ScalarType::Int && dtype != ScalarType::Long)
    check(false, op, "lengths must be int32, int64, got ", dtype_name(dtype));

  Tensor cu_seqlens = empty_cpu({batch + 1}, ScalarType::Int);
  int32_t* offsets = ints_of(cu_seqlens);
  with_indices(lengths, [&](const auto* values, int64_t stride) {
    for (int64_t i = 0; i < batch; ++i) {
      const int64_t length = values[i * stride];
      if (length < 0 || length > padded_length)
        check(false, op, "lengths must be in [0, ", padded_length, "], got ", length, " at index ",
              i);
      offsets[i + 1] = static_cast<int32_t>(length);
    }
  });
  Packing packing = packing_of_counts(std::move(cu_seqlens));
  int32_t* indices = ints_of(std::get<1>(packing));
  int32_t* positions = ints_of(std::get<2>(packing));
  parallel_rows(batch, padded_length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t first = static_cast<int32_t>(i * padded_length);
      for (int32_t at = offsets[i], rank = 0; at < offsets[i + 1]; ++at, ++rank) {
        indices[at] = first + rank;
        positions[at] = rank;
      }
    }
  });
  pack_lengths_variant.record();
  return packing;
}

// x with every row contiguous: itself, or a copy.
Tensor with_contiguous_rows(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d > 0; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return torch::stable::contiguous(x);
    expected *= x.size(d);
  }
  return x;
}

// An uninitialised tensor of `rows` rows like those of x.
Tensor empty_rows(const Tensor& x, int64_t rows) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = rows;
  return empty_cpu(sizes.data(), x.dim(), x.scalar_type());
}

int64_t bytes_per_row(const Tensor& x) {
  int64_t elements = 1;
  for (int64_t d = 1; d < x.dim(); ++d) elements *= x.size(d);
  return elements * static_cast<int64_t>(x.element_size());
}

// Rows of `from` to those of `to`, which are contiguous; without indices.
MoveParams move_params(const Tensor& from, const Tensor& to) {
  MoveParams p{};
  p.from = from.const_data_ptr();
  p.to = to.mutable_data_ptr();
  p.row_bytes = bytes_per_row(from);
  p.from_stride = from.stride(0) * static_cast<int64_t>(from.element_size());
  return p;
}

Tensor gather_rows(const Tensor& x, const Tensor& indices) {
  const char* op = "gather_rows";
  check_cpu(x, op, "x");
  check(x.dim() > 0, op, "x must have at least one dimension, got ()");
  if (indices.dim() != 1)
    check(false, op, "indices must be (total_tokens,), got ", shape_of(indices));
  check_indices(indices, indices.size(0), x.size(0), op, "indices");
  const Tensor from = with_contiguous_rows(x);
  Tensor out = empty_rows(from, indices.size(0));
  MoveParams p = move_params(from, out);
  p.indices = indices.const_data_ptr();
  p.index_stride = indices.stride(0);
  p.wide_indices = indices.scalar_type() == ScalarType::Long;
  MoveRows* kernel = TAUT_KERNEL(gather_rows);
  parallel_rows(indices.size(0), p.row_bytes / 4,
                [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  gather_rows_variant.record();
  return out;
}

Tensor scatter_rows(const Tensor& x, const Tensor& indices, int64_t rows) {
  const char* op = "scatter_rows";
  check_cpu(x, op, "x");
  check(x.dim() > 0, op, "x must have at least one dimension, got ()");
  check(rows >= 0, op, "rows must not be negative, got ", rows);
  check_indices(indices, x.size(0), rows, op, "indices");
  const Tensor from = with_contiguous_rows(x);
  Tensor out = empty_rows(from, rows);
  // Every row is written once, by the thread whose it is: zeros under rows that are overwritten
  // later would be one more pass over memory. Of several rows for one place, the last stays.
  std::vector<int64_t> source(static_cast<size_t>(rows), -1);
  with_indices(indices, [&](const auto* values, int64_t stride) {
    for (int64_t i = 0; i < from.size(0); ++i) source[static_cast<size_t>(values[i * stride])] = i;
  });
  MoveParams p = move_params(from, out);
  p.indices = source.data();
  MoveRows* kernel = TAUT_KERNEL(scatter_rows);
  parallel_rows(rows, p.row_bytes / 4, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  scatter_rows_variant.record();
  return out;
}

}  // namespace
}  // namespace taut

STABLE_TORCH_LIBRARY_IMPL(taut, CPU, m) {
  m.impl("pack_mask", TORCH_BOX(&taut::pack_mask));
  m.impl("pack_lengths", TORCH_BOX(&taut::pack_lengths));
  m.impl("gather_rows", TORCH_BOX(&taut::gather_rows));
  m.impl("scatter_rows", TORCH_BOX(&taut::scatter_rows));
}
