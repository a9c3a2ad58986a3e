// Attention over packed signs on sm_80 to sm_90, modes bool and elastic: both operands of both
// products are bits, counted by mma.sync.
//
// What is attended to is where enough channels agree. Accumulators start at minus that number, so
// their sign says it, and one funnel shift per score packs 32 of a row's signs into the word that
// the product with the values takes: see binary_keys.cuh. A sum over attended keys of values +-1 is
// 2 |attended & value| - |attended|; a product with ones counts the latter.
//
// Elastic passes over the keys twice before that: for the row's largest agreement, then for the sum
// of exponentials, all of them whole numbers. They fall with the distance, so the threshold on
// probabilities is one on agreements.
//
// A block takes items of the plan in turn (see attention_params.h): four warps of 16 M rows each
// pass over 256 keys at a time. Sequences of up to 32 tokens have one or two tiles of 16 rows:
// there each warp takes one, of one head, with 128 keys of its own.
#pragma once
#include "cuda/binary_keys.cuh"

namespace taut {

enum class KeyPass { largest, sum, attend };

template <int M_, bool kElastic_>
struct BinaryShape {
  static constexpr int M = M_;
  static constexpr bool kElastic = kElastic_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = kWarps * 16 * M;
  static constexpr int kKeys = 2 * kRegionKeys;
  static constexpr int kFirstPass = static_cast<int>(kElastic ? KeyPass::largest : KeyPass::attend);
  static constexpr int kTableBytes = kElastic ? kDistances * 32 * 4 : 4 * 4;
  static constexpr int kSharedBytes = kWarps * kRegionBytes + kTableBytes;
  // Blocks per multiprocessor that registers must allow.
  static constexpr int kBlocks = M == 1 ? 4 : kElastic ? 2 : 3;
};

// What a warp knows of its rows.
template <int M>
struct BinaryRows {
  uint32_t q[M][2];
  int32_t start[M][4];  // of the accumulators in this pass: minus what rows g, g, g + 8, g + 8 need
  int32_t largest[M][2];
  uint64_t sum[M][2];
  Context<M> context;
};

// What accumulators start from. They come from other lanes, or from shared memory, for the compiler
// not to know that four registers hold the same number: it would copy one of them in front of every
// product. The lanes of a quad agree on the arguments.
__device__ __forceinline__ void set_start(int32_t (&start)[4], int of_upper, int of_lower) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    start[i] = __shfl_xor_sync(0xffffffffu, -(i < 2 ? of_upper : of_lower), i);
}

template <class S>
__device__ __forceinline__ int32_t* table_of() {
  return reinterpret_cast<int32_t*>(dynamic_shared() + S::kWarps * kRegionBytes);
}

// Elastic: E[x] for every lane, at entry -x, where lanes look up what they like without bank
// conflicts. Bool: four times what accumulators start from.
template <class S>
__device__ __forceinline__ const int32_t* exponential_table() {
  return table_of<S>() + 64 * 32 + threadIdx.x % 32;
}

template <class S>
__device__ __forceinline__ void fill_table(const BinaryAttentionParams& p) {
  constexpr int kEntries = S::kTableBytes / 4;
  for (int i = threadIdx.x; i < kEntries; i += S::kThreads)
    table_of<S>()[i] = S::kElastic ? p.exponentials[64 - i / 32] : -p.lowest;
  __syncthreads();
}

template <class S>
__device__ __forceinline__ void find_largest(BinaryRows<S::M>& rows, const uint8_t* region,
                                             int groups) {
  for_products(rows.q, region, groups, rows.start, [&](int m, int, const int32_t (&d)[4]) {
    rows.largest[m][0] = most(rows.largest[m][0], most(d[0], d[1]));
    rows.largest[m][1] = most(rows.largest[m][1], most(d[2], d[3]));
  });
}

// Products start at minus the largest, so d is minus x of E[x], entry 64 + d of the table. Keys
// that are not there agree nowhere, and are taken away again.
template <class S>
__device__ __forceinline__ void sum_exponentials(BinaryRows<S::M>& rows, const uint8_t* region,
                                                 int groups, int own) {
  const int32_t* table = exponential_table<S>();
  uint32_t sum[S::M][2] = {};  // of at most 32 entries of 24 bits
  for_products(rows.q, region, groups, rows.start, [&](int m, int, const int32_t (&d)[4]) {
    sum[m][0] += table[d[0] * 32] + table[d[1] * 32];
    sum[m][1] += table[d[2] * 32] + table[d[3] * 32];
  });
  const uint32_t missing = groups * 8 - own;
#pragma unroll
  for (int i = 0; i < 2 * S::M; ++i)
    rows.sum[i / 2][i % 2] += sum[i / 2][i % 2] - missing * table[-rows.largest[i / 2][i % 2] * 32];
}

// The words of attended keys of a region: rows g and g + 8.
template <int M>
__device__ __forceinline__ void attended_words(uint32_t (&words)[M][2], const BinaryRows<M>& rows,
                                               const uint8_t* region, int groups, int own) {
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) words[i / 2][i % 2] = 0;
  for_products(rows.q, region, groups, rows.start, [&](int m, int, const int32_t (&d)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[m][i / 2] = __funnelshift_l(d[i], words[m][i / 2], 1);
  });
  const int absent = (kGroups - groups) * 8;
  const uint32_t mask = own == 0 ? 0 : ~0u << (32 - own);
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    uint32_t& word = words[i / 2][i % 2];
    if (groups < kGroups) word = groups == 0 ? 0 : word << absent;
    word = ~word & mask;
  }
}

// `keys` keys of two regions, `apart` bytes apart; 128 in the first unless it holds the last.
template <class S>
__device__ __forceinline__ void take_keys(BinaryRows<S::M>& rows, KeyPass pass,
                                          const uint8_t* region, int apart, int keys) {
  constexpr int M = S::M;
  uint32_t a[M][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int here = clamp(keys - h * kRegionKeys, 0, kRegionKeys);
    const int groups = (here + kGroupKeys - 1) / kGroupKeys, own = own_keys(here);
    if (S::kElastic && pass == KeyPass::largest) {
      find_largest<S>(rows, region + h * apart, groups);
    } else if (S::kElastic && pass == KeyPass::sum) {
      sum_exponentials<S>(rows, region + h * apart, groups, own);
    } else {
      uint32_t words[M][2];
      attended_words(words, rows, region + h * apart, groups, own);
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) a[i / 2][2 * h + i % 2] = words[i / 2][i % 2];
    }
  }
  if (S::kElastic && pass != KeyPass::attend) return;
  const int lane = threadIdx.x % 32;
  const uint8_t* values =
      region + lane / 8 % 2 * apart + (kRegionKeys + lane / 16 * 8 + lane % 8) * kKeyBytes;
#pragma unroll
  for (int c = 0; c < kChannels / 8; c += 2) {
    uint32_t b[4];
    ptx::ldmatrix_x4(b, values + c * 8 * kKeyBytes);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      ptx::mma_m16n8k256_and(rows.context.sums[m][c], a[m], {b[0], b[1]});
      ptx::mma_m16n8k256_and(rows.context.sums[m][c + 1], a[m], {b[2], b[3]});
    }
  }
#pragma unroll
  for (int m = 0; m < M; ++m) ptx::mma_m16n8k256_and(rows.context.attended[m], a[m], {~0u, ~0u});
}

// What lies between two passes over the keys.
template <class S>
__device__ __forceinline__ void finish_pass(BinaryRows<S::M>& rows, KeyPass pass,
                                            const BinaryAttentionParams& p) {
  const int32_t* table = exponential_table<S>();
  int needed[S::M][2];
#pragma unroll
  for (int i = 0; i < 2 * S::M; ++i) {
    int32_t& largest = rows.largest[i / 2][i % 2];
    int32_t lowest;
    if (pass == KeyPass::largest) {
      largest = most(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = most(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      lowest = largest;
    } else {
      uint64_t sum = rows.sum[i / 2][i % 2];
#pragma unroll
      for (int width = 1; width <= 2; width *= 2) {
        const uint32_t low = static_cast<uint32_t>(sum), high = static_cast<uint32_t>(sum >> 32);
        sum += uint64_t{__shfl_xor_sync(0xffffffffu, high, width)} << 32 |
               __shfl_xor_sync(0xffffffffu, low, width);
      }
      // No entry is above 2^24. The entries above the limit are the first `above`.
      const double limit = static_cast<double>(sum) * p.half_alpha;
      const int32_t whole = limit < 16777216.0 ? static_cast<int32_t>(limit) : 16777216;
      int above = 0;
#pragma unroll
      for (int step = 64; step > 0; step /= 2)
        if (above + step <= kDistances && table[(1 - above - step) * 32] > whole) above += step;
      lowest = largest - above + 1;
    }
    needed[i / 2][i % 2] = lowest;
  }
#pragma unroll
  for (int m = 0; m < S::M; ++m) set_start(rows.start[m], needed[m][0], needed[m][1]);
}

template <class S>
__device__ __forceinline__ void start_rows(BinaryRows<S::M>& rows) {
#pragma unroll
  for (int m = 0; m < S::M; ++m) {
    const int4 start =
        S::kElastic ? make_int4(0, 0, 0, 0) : *reinterpret_cast<const int4*>(table_of<S>());
    rows.start[m][0] = start.x;
    rows.start[m][1] = start.y;
    rows.start[m][2] = start.z;
    rows.start[m][3] = start.w;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows.context.attended[m][i] = 0;
      rows.largest[m][i / 2] = 0;
      rows.sum[m][i / 2] = 0;
#pragma unroll
      for (int c = 0; c < kChannels / 8; ++c) rows.context.sums[m][c][i] = 0;
    }
  }
}

// ---- the passes over the keys

// S::kRows rows of one head, by the block. The words of the next 256 keys are on their way while
// those in shared memory are used.
template <class S>
__device__ __forceinline__ void attend_block(const BinaryAttentionParams& p,
                                             const BinaryItem& item) {
  uint8_t* shared = dynamic_shared();
  const int thread = threadIdx.x, warp = warp_index();
  const int first_row = item.first_row + warp * 16 * S::M;
  const SequenceBits keys = sequence_bits(p.k, item.begin, item.length, item.head);
  const SequenceBits values = sequence_bits(p.v, item.begin, item.length, item.head);
  BinaryRows<S::M> rows;
  start_rows<S>(rows);
  load_queries(rows.q, sequence_bits(p.q, item.begin, item.length, item.head), first_row);
  const bool works = is_uniform(first_row < item.length);

  uint64_t key_words[2], value_words[2];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      key_words[h] = keys.at(first + h * kRegionKeys + thread);
      value_words[h] = values.at(first + h * kRegionKeys + value_key(warp));
    }
  };
  fetch(0);
#pragma unroll 1
  for (int pass = S::kFirstPass; pass <= static_cast<int>(KeyPass::attend); ++pass) {
#pragma unroll 1
    for (int first = 0; first < item.length; first += S::kKeys) {
      __syncthreads();  // nobody reads the keys before these any more
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int key = first + h * kRegionKeys + thread;
        store_key(shared + h * kRegionBytes, thread, key_words[h], key < item.length);
        if (!S::kElastic || pass == static_cast<int>(KeyPass::attend))
          store_values(shared + h * kRegionBytes, warp, value_words[h]);
      }
      __syncthreads();
      fetch(first + S::kKeys < item.length ? first + S::kKeys : 0);
      if (works)
        take_keys<S>(rows, static_cast<KeyPass>(pass), shared, kRegionBytes, item.length - first);
    }
    if (pass < static_cast<int>(KeyPass::attend))
      finish_pass<S>(rows, static_cast<KeyPass>(pass), p);
  }
  if (works) store_context(p, rows.context, item, first_row);
}

// Up to 16 M rows of one head of a sequence of at most kGroupKeys tokens, by a warp alone.
template <class S>
__device__ __forceinline__ void attend_warp(const BinaryAttentionParams& p,
                                            const BinaryItem& item) {
  uint8_t* region = dynamic_shared() + warp_index() * kRegionBytes;
  const int lane = threadIdx.x % 32;
  BinaryRows<S::M> rows;
  start_rows<S>(rows);
  load_queries(rows.q, sequence_bits(p.q, item.begin, item.length, item.head), item.first_row);
  const SequenceBits values = sequence_bits(p.v, item.begin, item.length, item.head);
  __syncwarp();  // nobody reads the keys before these any more
  store_key(region, lane, sequence_bits(p.k, item.begin, item.length, item.head).at(lane),
            lane < item.length);
#pragma unroll
  for (int t = 0; t < 4; ++t) store_values(region, t, values.at(value_key(t)));
  __syncwarp();
#pragma unroll 1
  for (int pass = S::kFirstPass; pass <= static_cast<int>(KeyPass::attend); ++pass) {
    take_keys<S>(rows, static_cast<KeyPass>(pass), region, 0, item.length);
    if (pass < static_cast<int>(KeyPass::attend))
      finish_pass<S>(rows, static_cast<KeyPass>(pass), p);
  }
  store_context(p, rows.context, item, item.first_row);
}

// ---- kernels

// Tiles of kLongRows rows: the long sequences.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    binary_attention_long_kernel(const __grid_constant__ BinaryAttentionParams p) {
  static_assert(S::kRows == kLongRows, "a block takes an item of a long sequence whole");
  fill_table<S>(p);
  const BinaryBatch& b = p.batch;
  const int64_t units = int64_t{clamp(b.plan[kPlanLong], 0, b.plan_items)} * b.heads;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Item item = plan_item(b.plan, unit / b.heads, b.batch);
    if (item.sequence < 0) continue;
    const BinaryItem rows = find_rows(b, item, unit % b.heads);
    if (rows.first_row < rows.length) attend_block<S>(p, rows);
  }
}

// Tiles of kShortRows rows, or of 16 rows per warp: the short sequences. Also zeros for the rows of
// none; all rows are, when cu_seqlens is malformed.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    binary_attention_short_kernel(const __grid_constant__ BinaryAttentionParams p) {
  static_assert(S::kRows == kShortRows, "a block takes an item of a short sequence whole");
  fill_table<S>(p);
  const BinaryBatch& b = p.batch;
  const int last = clamp(b.plan[kPlanFour], 0, b.plan_items);
  const int first = clamp(b.plan[kPlanLong], 0, last), one = clamp(b.plan[kPlanOne], first, last);
  const int two = clamp(b.plan[kPlanTwo], one, last);
  const int pairs = (b.heads + 1) / 2, fours = (b.heads + 3) / 4;
  const int64_t end_one = int64_t{one - first} * b.heads;
  const int64_t end_two = end_one + int64_t{two - one} * pairs;
  const int64_t units = end_two + int64_t{last - two} * fours;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const bool is_one = unit < end_one, is_two = unit < end_two;
    const int per_item = is_one ? b.heads : is_two ? pairs : fours;
    const int64_t within = unit - (is_one ? 0 : is_two ? end_one : end_two);
    const int index = (is_one ? first : is_two ? one : two) + within / per_item;
    const Item item = plan_item(b.plan, index, b.batch);
    if (item.sequence < 0) continue;
    BinaryItem rows = find_rows(b, item, within % per_item);
    if (is_one) {
      if (rows.first_row < rows.length) attend_block<S>(p, rows);
    } else if (rows.length <= (is_two ? 32 : 16)) {  // not with a plan of other cu_seqlens
      const int warp = warp_index();
      rows.head = is_two ? rows.head * 2 + warp / 2 : rows.head * 4 + warp;
      rows.first_row = is_two ? warp % 2 * 16 : 0;
      if (rows.head < b.heads && rows.first_row < rows.length) attend_warp<S>(p, rows);
    }
    __syncthreads();  // blocks and warps use the same regions
  }
  fill_rest(b, p.out, p.rails == 0 ? kChannels * 4 : p.rails * 8, 0, S::kThreads);
}

}  // namespace taut
