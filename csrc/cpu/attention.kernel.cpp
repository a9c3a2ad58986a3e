// Varlen attention, forward: one task is some queries of one sequence and one head.
//
// Both products are computed transposed, so that a vector lane is a query throughout:
//   S^T [key][lane] = K . Q^T        K is read row by row as it lies
//   O^T [channel][lane] = V^T . P^T  P^T is S^T after the softmax, in place
// Maxima and sums over keys are then plain vector operations, the number of keys needs no masks,
// and only Q (on the way in) and O (on the way out) are transposed, once per query.
#include "cpu/attention.h"

#include "cpu/attention_paths.h"

namespace taut {
namespace TAUT_ISA {
namespace {

template <class T, class Path>
class Forward {
 public:
  using Element = typename Path::Element;

  Forward(const AttentionParams& p, const AttentionTask& task, int64_t head, void* scratch)
      : p_(p),
        task_(task),
        head_(head),
        token_q_(p.cu_seqlens_q[task.sequence]),
        keys_(p.cu_seqlens_k[task.sequence + 1] - p.cu_seqlens_k[task.sequence]),
        shift_(keys_ - (p.cu_seqlens_q[task.sequence + 1] - token_q_)),
        units_(round_up(p.head_dim / Path::kUnit, Vec::kWidth)),
        columns_(round_up(p.head_dim, 16)),
        query_(p.q, head, token_q_, p.head_dim),
        key_(p.k, head / (p.heads / p.heads_kv), p.cu_seqlens_k[task.sequence], p.head_dim),
        value_(p.v, head / (p.heads / p.heads_kv), p.cu_seqlens_k[task.sequence], p.head_dim) {
    Arena arena(scratch);
    k_ = arena.take<Element>(kAttentionKeys * units_ * Path::kUnit);
    v_ = arena.take<float>(kAttentionKeys / Path::kUnit * columns_);
    pairs_ = arena.take<float>(Path::kPairs ? kAttentionKeys / 2 * columns_ : 0);
    q_rows_ = arena.take<Element>(kLanes * units_ * Path::kUnit);
    q_ = arena.take<float>(units_ * kLanes);
    scores_ = arena.take<float>(kAttentionKeys * kLanes);
    probabilities_ = Path::kPairs ? arena.take<float>(kAttentionKeys / 2 * kLanes) : scores_;
    out_ = arena.take<float>(kAttentionRows * columns_);
    maximum_ = arena.take<float>(kAttentionRows);
    sum_ = arena.take<float>(kAttentionRows);
    distance_bias_ = arena.take<float>(kAttentionRows + kAttentionKeys);
  }

  void run() {
    for (int64_t r = 0; r < task_.rows; r += Vec::kWidth) {
      Vec::set(kLowestMaximum).store(maximum_ + r);
      Vec::zero().store(sum_ + r);
    }
    if (p_.clip) sweep(true);  // clipping needs the whole row's sum first
    sweep(false);
    for (int64_t r = 0; r < task_.rows; r += kLanes) {
      finish_rows(r);
      finish_logsumexp(r);
    }
  }

 private:
  KeyRange visible(int64_t row, int64_t rows) const {
    return visible_keys(p_, task_.first_row + row, task_.first_row + row + rows - 1, shift_, keys_);
  }
  int64_t rows_at(int64_t row) const {
    return task_.rows - row < kLanes ? task_.rows - row : kLanes;
  }

  // All keys, block by block. With `only_sums`, the products with V are left out.
  void sweep(bool only_sums) {
    const KeyRange all = visible(0, task_.rows);
    for (block_ = all.begin / kAttentionKeys * kAttentionKeys; block_ < all.end;
         block_ += kAttentionKeys) {
      const int64_t left = keys_ - block_;
      block_keys_ = left < kAttentionKeys ? left : kAttentionKeys;
      pack_rows(key_, block_, block_keys_, round_up(block_keys_, Path::kKeyRows), p_.head_dim,
                units_ * Path::kUnit, k_);
      if (!only_sums)
        Path::pack_values(value_, block_, block_keys_, p_.head_dim, columns_, pairs_, v_);
      if (p_.by_distance)
        fill_distance_bias(p_, task_.sequence, head_,
                           task_.first_row + shift_ - (block_ + block_keys_ - 1),
                           round_up(task_.rows, kLanes) + block_keys_ - 1, distance_bias_);
      for (int64_t r = 0; r < task_.rows; r += kLanes)
        rows_at(r) > Vec::kWidth ? step<2>(r, only_sums) : step<1>(r, only_sums);
    }
  }

  // One block of queries against the keys of the current block.
  template <int kVecs>
  void step(int64_t row, bool only_sums) {
    const KeyRange range = visible(row, rows_at(row));
    const int64_t end = (range.end < block_ + block_keys_ ? range.end - block_ : block_keys_);
    const int64_t begin = range.begin > block_ ? (range.begin - block_) / 32 * 32 : 0;
    const int64_t keys = end - begin;
    if (keys <= 0 || range.begin >= range.end) return;
    const bool fresh = range.begin >= block_;

    pack_rows(query_, task_.first_row + row, rows_at(row), kVecs * Vec::kWidth, p_.head_dim,
              units_ * Path::kUnit, q_rows_);
    transpose_units(reinterpret_cast<const float*>(q_rows_), units_, kVecs * Vec::kWidth, units_,
                    q_, kLanes);
    Path::template scores<kVecs>(k_ + begin * units_ * Path::kUnit, units_, p_.head_dim, q_, keys,
                                 scores_);

    Vec before[kVecs], maximum[kVecs], scale;
    for (int v = 0; v < kVecs; ++v)
      before[v] = maximum[v] = Vec::load(maximum_ + row + v * Vec::kWidth);
    if (p_.by_distance || p_.softcap > 0) {
      const float* bias =
          p_.by_distance ? distance_bias_ + row + (block_keys_ - 1 - begin) : nullptr;
      finish_scores<kVecs>(p_, bias, keys, scores_, maximum);
      scale = Vec::set(1.0f);
    } else {
      scale = Vec::set(p_.softmax_scale * kLog2e);
      raise_maximum<kVecs>(keys, scale, maximum);
    }

    const bool final_sums = p_.clip && !only_sums;
    float keep[kLanes];
    Vec sum[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      maximum[v].store(maximum_ + row + v * Vec::kWidth);
      const Vec change = exp2(before[v] - maximum[v]);
      change.store(keep + v * Vec::kWidth);
      sum[v] = Vec::load(sum_ + row + v * Vec::kWidth) * change;
    }
    const int64_t steps = round_up(keys, Path::kKeyStep);
    if (Path::kPairs && !p_.clip && !p_.dropout) {
      exponentials<kVecs, Path::kPairs>(keys, steps, scale, maximum, sum);
    } else {
      exponentials<kVecs, false>(keys, steps, scale, maximum, sum);
      if (final_sums) clip_probabilities<kVecs>(row, steps);
      if (p_.dropout)
        apply_dropout(p_, head_, token_q_ + task_.first_row + row, block_ + begin, block_ + end,
                      scores_);
      if constexpr (Path::kPairs) pack_probabilities<kVecs>(steps);
    }
    if (!final_sums)
      for (int v = 0; v < kVecs; ++v) sum[v].store(sum_ + row + v * Vec::kWidth);
    if (!only_sums)
      Path::template accumulate<kVecs>(v_, columns_, p_.head_dim, begin, probabilities_, steps,
                                       fresh ? nullptr : keep, out_ + row * columns_);
  }

  template <int kVecs>
  void raise_maximum(int64_t keys, Vec scale, Vec (&maximum)[kVecs]) const {
    constexpr int kApart = 4;  // maxima side by side, which do not wait for each other
    Vec largest[kApart][kVecs];
    for (int i = 0; i < kApart; ++i)
      for (int v = 0; v < kVecs; ++v) largest[i][v] = Vec::load(scores_ + v * Vec::kWidth);
    int64_t key = 0;
    for (; key + kApart <= keys; key += kApart)
      for (int i = 0; i < kApart; ++i)
        for (int v = 0; v < kVecs; ++v)
          largest[i][v] =
              max(largest[i][v], Vec::load(scores_ + (key + i) * kLanes + v * Vec::kWidth));
    for (; key < keys; ++key)
      for (int v = 0; v < kVecs; ++v)
        largest[0][v] = max(largest[0][v], Vec::load(scores_ + key * kLanes + v * Vec::kWidth));
    for (int v = 0; v < kVecs; ++v)
      largest[0][v] = max(max(largest[0][v], largest[1][v]), max(largest[2][v], largest[3][v]));
    for (int v = 0; v < kVecs; ++v) maximum[v] = max(maximum[v], largest[0][v] * scale);
  }

  // scores -> 2^(scale * score - maximum), in place or, with kToPairs, as bf16 pairs of keys; zeros
  // for the keys [keys, steps), which only fill the last step.
  template <int kVecs, bool kToPairs>
  void exponentials(int64_t keys, int64_t steps, Vec scale, const Vec (&maximum)[kVecs],
                    Vec (&sum)[kVecs]) {
    const auto at = [&](int64_t key, int v) {
      const float* score = scores_ + key * kLanes + v * Vec::kWidth;
      return exp2<Path::kExpDegree>(fma(Vec::load(score), scale, Vec::zero() - maximum[v]));
    };
    if constexpr (kToPairs) {
      const auto add_pair = [&](int64_t key, int v, Vec low, Vec high) {
        sum[v] = sum[v] + (low + high);
        Path::pair(low, high).store(probabilities_ + key / 2 * kLanes + v * Vec::kWidth);
      };
      int64_t key = 0;
      for (; key + 2 <= keys; key += 2)
        for (int v = 0; v < kVecs; ++v) add_pair(key, v, at(key, v), at(key + 1, v));
      for (; key < steps; key += 2)
        for (int v = 0; v < kVecs; ++v)
          add_pair(key, v, key < keys ? at(key, v) : Vec::zero(), Vec::zero());
    } else {
      for (int64_t key = 0; key < keys; ++key)
        for (int v = 0; v < kVecs; ++v) {
          const Vec e = at(key, v);
          sum[v] = sum[v] + e;
          e.store(scores_ + key * kLanes + v * Vec::kWidth);
        }
      for (int64_t key = keys; key < steps; ++key)
        for (int v = 0; v < kVecs; ++v) Vec::zero().store(scores_ + key * kLanes + v * Vec::kWidth);
    }
  }

  template <int kVecs>
  void clip_probabilities(int64_t row, int64_t keys) {
    const Vec offset = Vec::set(p_.clip_offset), one = Vec::set(1.0f);
    for (int v = 0; v < kVecs; ++v) {
      const Vec slope = inverse_sum(row + v * Vec::kWidth) * Vec::set(p_.clip_slope);
      for (int64_t key = 0; key < keys; ++key) {
        float* at = scores_ + key * kLanes + v * Vec::kWidth;
        min(one, max(Vec::zero(), fma(Vec::load(at), slope, offset))).store(at);
      }
    }
  }

  template <int kVecs>
  void pack_probabilities(int64_t keys) {
    for (int64_t key = 0; key < keys; key += 2)
      for (int v = 0; v < kVecs; ++v) {
        const float* at = scores_ + key * kLanes + v * Vec::kWidth;
        Path::pair(Vec::load(at), Vec::load(at + kLanes))
            .store(probabilities_ + key / 2 * kLanes + v * Vec::kWidth);
      }
  }

  // 0 for a row that saw no key: any other sum is at least the 1 of its largest score.
  Vec inverse_sum(int64_t row) const {
    const Vec sum = Vec::load(sum_ + row);
    return select(sum < Vec::set(0.5f), Vec::zero(), Vec::set(1.0f) / sum);
  }

  void finish_rows(int64_t row) {
    float* block = out_ + row * columns_;
    const KeyRange range = visible(row, rows_at(row));
    if (range.begin >= range.end)
      std::memset(block, 0, static_cast<size_t>(columns_ * kLanes) * sizeof(float));
    const int64_t out_stride = p_.heads * p_.head_dim;
    T* out = static_cast<T*>(p_.out) + (token_q_ + task_.first_row + row) * out_stride +
             head_ * p_.head_dim;
    for (int64_t lane = 0; lane < rows_at(row); lane += Vec::kWidth) {
      const Vec factor = p_.clip ? Vec::set(1.0f) : inverse_sum(row + lane);
      const int rows = vector_part(rows_at(row) - lane);
      for (int64_t c = 0; c < p_.head_dim; c += Vec::kWidth) {
        Vec square[Vec::kWidth];
        for (int i = 0; i < Vec::kWidth; ++i)
          square[i] = Vec::load(block + (c + i) * kLanes + lane) * factor;
        transpose(square);
        for (int i = 0; i < rows; ++i)
          store(square[i], out + (lane + i) * out_stride + c, vector_part(p_.head_dim - c));
      }
    }
  }

  void finish_logsumexp(int64_t row) {
    float* out = p_.logsumexp + head_ * p_.total_q + token_q_ + task_.first_row + row;
    float logs[kLanes];
    log2_lanes(sum_ + row, kLanes, logs);
    for (int64_t i = 0; i < rows_at(row); ++i) {
      const float sum = sum_[row + i];
      const float value = (maximum_[row + i] + logs[i]) * kLn2;
      out[i] = sum < 0.5f ? -__builtin_inff() : sum == sum ? value : sum;
    }
  }

  const AttentionParams& p_;
  const AttentionTask& task_;
  const int64_t head_, token_q_, keys_, shift_, units_, columns_;
  const Head<T> query_, key_, value_;
  int64_t block_ = 0, block_keys_ = 0;  // the current keys: [block_, block_ + block_keys_)
  Element* k_;                          // [key][units_ units]
  float* v_;                            // see pack_values of the path
  float* pairs_;
  Element* q_rows_;       // [lane][units_ units]
  float* q_;              // [unit][lane]
  float* scores_;         // [key][lane]
  float* probabilities_;  // [key / kUnit][lane]
  float* out_;            // per block of kLanes queries: [channel][lane]
  float* maximum_;        // per query, in units of log2(e)
  float* sum_;
  float* distance_bias_;  // of lane 0's first row and the block's last key first
};

}  // namespace

void attention_f32(const AttentionParams& p, const AttentionTask& task, int64_t head,
                   void* scratch) {
  Forward<float, Floats>(p, task, head, scratch).run();
}
void attention_bf16(const AttentionParams& p, const AttentionTask& task, int64_t head,
                    void* scratch) {
#if defined(TAUT_ISA_amx)
  tile_configure(product_tiles(16, 64));
#endif
  Forward<bf16, BestBf16Path>(p, task, head, scratch).run();
#if defined(TAUT_ISA_amx)
  tile_release();
#endif
}
void attention_f16(const AttentionParams& p, const AttentionTask& task, int64_t head,
                   void* scratch) {
  Forward<f16, Floats>(p, task, head, scratch).run();
}

}  // namespace TAUT_ISA
}  // namespace taut
