// Attention over packed signs, modes bool and elastic: one task is some queries of one sequence and
// one head.
//
// A query's word is counted against 64 keys at a time; comparing the counts gives the word of keys
// it attends to, and that word is counted against the signs of V, kept as one word of 64 keys per
// channel.
#include "cpu/binary_attention.h"

#include "cpu/binary_keys.h"

namespace taut {
namespace TAUT_ISA {
namespace {

class Rows {
 public:
  Rows(const BinaryAttentionParams& p, const AttentionTask& task, int64_t head, void* scratch)
      : p_(p),
        head_(head),
        token_(p.cu_seqlens[task.sequence]),
        first_(token_ + task.first_row),
        rows_(task.rows),
        keys_(p.cu_seqlens[task.sequence + 1] - token_),
        blocks_((keys_ + kWord - 1) / kWord) {
    uint8_t* next = static_cast<uint8_t*>(scratch);
    const auto take = [&](int64_t bytes) {
      uint8_t* piece = next;
      next += bytes;
      return piece;
    };
    key_blocks_ = take(blocks_ * 1024);
    values_ = reinterpret_cast<uint64_t*>(take(blocks_ * 512));
    planes_ = take(blocks_ * 1024);
    distances_ = take(kCountRows * blocks_ * kWord);
    attended_ = reinterpret_cast<Operand*>(take(kCountRows * blocks_ * 32));
  }

  void run() {
    prepare_all_keys(p_.k, token_, head_, keys_, key_blocks_);
    for (int64_t block = 0; block < blocks_; ++block) {
      uint64_t words[kWord];
      uint8_t scratch[8 * kWord];
      gather_words(p_.v, token_, head_, block * kWord, keys_, words);
      transpose_bits(words, scratch, values_ + block * kWord);
    }
    columns_ = prepare_columns(values_, blocks_, planes_);
    load_thresholds();
    int64_t r = 0;
    for (; r + kCountRows <= rows_; r += kCountRows) step<kCountRows>(first_ + r);
    for (; r < rows_; ++r) step<1>(first_ + r);
  }

 private:
  template <int kRows>
  void step(int64_t token) {
    Query queries[kRows];
    for (int r = 0; r < kRows; ++r) make_query(*p_.q.at(token + r, head_), queries + r);
    int32_t attended_keys[kRows] = {};
    const auto keep = [&](int r, int64_t block, uint64_t bits) {
      attended_[r * blocks_ + block] = Operand::of(0, bits);
      attended_keys[r] += __builtin_popcountll(bits);
    };
    if (p_.table) {
      const int64_t stride = blocks_ * kWord;
      uint8_t least[kRows];
      all_distances<kRows>(queries, key_blocks_, keys_, distances_, stride, least);
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* distance = distances_ + r * stride;
        const uint8_t limit = elastic_limit(distance, least[r]);
        for (int64_t block = 0; block < blocks_; ++block)
          keep(r, block, Bytes64::load(distance + block * kWord).below(limit));
      }
    } else {
      for (int64_t block = 0; block < blocks_; ++block) {
        Bytes64 counts[kRows];
        distances<kRows>(queries, key_blocks_ + block * kKeyBytes, counts);
        const int64_t left = keys_ - block * kWord;
        const uint64_t keys = left < kWord ? (uint64_t{1} << left) - 1 : ~uint64_t{0};
        for (int r = 0; r < kRows; ++r) keep(r, block, counts[r].below(p_.limit) & keys);
      }
    }
    alignas(64) int32_t sums[kRows][kWord];
    count_rows<kRows>(attended_, blocks_, columns_, blocks_, 0, sums);
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kWord; ++c) sums[r][c] = 2 * sums[r][c] - attended_keys[r];
      finish(token + r, sums[r]);
    }
  }

  // Attended is where E[distance - least] > alpha / 2 times the sum, and E falls: so where distance
  // is less than least + the number of such entries.
  uint8_t elastic_limit(const uint8_t* distance, uint8_t least) const {
    const ExponentialTable& table = *p_.table;
    const double sum = static_cast<double>(sum_exponentials(table, distance, blocks_, least));
    const double bound = sum * p_.half_alpha;  // >= 0: the cast below takes the floor
    const int32_t highest = bound < 1 << 24 ? static_cast<int32_t>(bound) : 1 << 24;
    int32_t above = 0;
    for (const int32_t e : table.whole) above += e > highest;
    return static_cast<uint8_t>(least + above);
  }

  void load_thresholds() {
    for (int c = 0; c < kWord; ++c) {
      thresholds_[0][c] = thresholds_[2][c] = 0;
      thresholds_[1][c] = INT32_MIN;
    }
    if (!p_.thresholds) return;
    for (int t = 0; t < (p_.rails == 2 ? 3 : 1); ++t)
      std::memcpy(thresholds_[t], p_.thresholds + (t * p_.heads + head_) * kWord,
                  sizeof(thresholds_[t]));
  }

  void finish(int64_t token, const int32_t* sums) const {
    if (p_.rails == 0) {
      std::memcpy(static_cast<int32_t*>(p_.out) + (token * p_.heads + head_) * kWord, sums,
                  kWord * sizeof(int32_t));
      return;
    }
    uint64_t* out = static_cast<uint64_t*>(p_.out) + token * p_.rails * p_.heads + head_;
    out[0] = greater_bits(sums, thresholds_[0]);
    if (p_.rails == 2)
      out[p_.heads] = greater_bits(sums, thresholds_[1]) & greater_bits(thresholds_[2], sums);
  }

  const BinaryAttentionParams& p_;
  const int64_t head_, token_, first_, rows_, keys_, blocks_;
  uint8_t* key_blocks_;
  uint64_t* values_;  // [block][channel]: a bit per key
  uint8_t* planes_;
  const void* columns_ = nullptr;
  uint8_t* distances_;  // [row][key]
  Operand* attended_;   // [row][block]
  int32_t thresholds_[3][kWord];
};

}  // namespace

void binary_attention_rows(const BinaryAttentionParams& p, const AttentionTask& task, int64_t head,
                           void* scratch) {
  Rows(p, task, head, scratch).run();
}

}  // namespace TAUT_ISA
}  // namespace taut
