// Vec: a vector of fp32 lanes of the instruction set this file is compiled for, with loads and
// stores that convert from and to bf16 and fp16. Kernels are written once over Vec.
//
//   Vec::kWidth                      lanes
//   Vec::zero(), Vec::set(x)         all lanes 0 or x
//   Vec::load(p), Vec::load(p, n)    p: float, bf16 or f16; with n, the first n lanes only: the
//                                    rest are 0 and nothing behind p + n is read
//   v.store(p), v.store(p, n)        rounds to nearest even; with n, writes the first n lanes only
//   + - * /, fma(a, b, c) = a*b + c, fnma(a, b, c) = c - a*b, min, max, abs, sqrt, round
//   a < b -> Mask; select(mask, a, b) = mask ? a : b
//   reduce_add(v), reduce_max(v)     in a fixed order
//   split_exponent(v)                {fraction, power}: 2^v = scale(2^fraction, power), the
//   fraction
//                                    in [0, 1]
//   scale(a, v)                      a * 2^v for integral v in [-126, 127] or the power of a split
//
// Pairs: kWidth pairs of neighbouring bf16, as a packed weight holds them.
//
//   Pairs::load(p), Pairs::set(p)    kWidth pairs from p; the one pair at p in all lanes
//   pairs.even(), pairs.odd()        the first and the second members as Vec
//   dot(a, b, c)                     c + a.even() * b.even() + a.odd() * b.odd(); AVX512_BF16 only
//   pairs_of(even, odd)              rounds two Vec to nearest even: Pairs; store(p)
#pragma once
#include <cstdint>
#include <cstring>

#include "common/types.h"

#if defined(TAUT_ISA_portable)
#include "cpu/isa/portable.h"
#elif defined(TAUT_ISA_avx2)
#include "cpu/isa/avx2.h"
#else
#include "cpu/isa/avx512.h"
#endif
#include "cpu/isa/math.h"
