// What the launchers of packed signs on CUDA share.
#pragma once
#include "cuda/binary_gemm_params.h"
#include "cuda/fallback.h"
#include "cuda/inputs.h"

namespace taut {

inline const uint64_t* read_words(const Tensor& t) {
  return static_cast<const uint64_t*>(t.const_data_ptr());
}
inline uint64_t* write_words(const Tensor& t) {
  return static_cast<uint64_t*>(t.mutable_data_ptr());
}
inline Tensor empty_bits(int64_t rows, int64_t rails, int64_t words, int32_t device) {
  return rails == 1 ? empty_cuda({rows, words}, ScalarType::Long, device)
                    : empty_cuda({rows, rails, words}, ScalarType::Long, device);
}

// Thresholds for one rail of `shape`, or three of that for two: contiguous.
inline const int32_t* thresholds_of(const Tensor& t, std::initializer_list<int64_t> shape,
                                    int64_t rails, Inputs& inputs, int32_t device, const char* op) {
  check_cuda(t, device, op, "thresholds");
  const int64_t extra = rails == 2 ? 1 : 0, dim = static_cast<int64_t>(shape.size()) + extra;
  bool fits = t.dim() == dim && (extra == 0 || t.size(0) == 3);
  for (int64_t i = extra; fits && i < dim; ++i) fits = t.size(i) == shape.begin()[i - extra];
  if (!fits) {
    std::ostringstream wanted;
    wanted << (extra ? "3" : "");
    for (int64_t size : shape) wanted << (wanted.tellp() ? ", " : "") << size;
    check(false, op, "thresholds must be (", wanted.str(), ") with rails = ", rails, ", got ",
          shape_of(t));
  }
  check_dtype(t, ScalarType::Int, op, "thresholds");
  return static_cast<const int32_t*>(inputs.contiguous(t));
}

// Whether a device multiplies single bits: later ones emulate that.
inline bool has_bit_products(const FirstTensor& x) {
  return x.is_on_sm80() && compute_capability(x.device) < 100;
}
template <Boxed* native>
inline void bits_or_triton(const char* op, StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  if (has_bit_products(FirstTensor(stack))) return native(stack, inputs, outputs);
  call_triton(op, stack);
}

}  // namespace taut
