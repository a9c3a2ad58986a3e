// Varlen attention, backward: one task is a sequence and a head of k and v, so that every sum runs
// in a fixed order within one thread. All arithmetic is fp32; where bf16 is multiplied as such, P
// and dS are rounded to it in front of the last three products.
//
// Per block of keys and block of queries, transposed like the forward pass:
//   P^T = 2^(K Q^T scores - logsumexp)      D^T = V dO^T
//   dS^T = P^T (D^T - delta)                delta_i = sum over j of P_ij D_ij = dO_i . O_i
//   dV += P^T dO     dK += dS^T Q     dQ += dS K
// With clipping, D is D through the clamp, and delta needs a sweep of its own.
#include "cpu/attention.h"
#include "cpu/attention_paths.h"

namespace taut {
namespace TAUT_ISA {
namespace {

template <class T, class Path>
class Backward {
 public:
  using Element = typename Path::Element;

  Backward(const AttentionBackwardParams& p, int64_t sequence, int64_t head_kv, void* scratch)
      : p_(p),
        f_(p.forward),
        sequence_(sequence),
        head_kv_(head_kv),
        group_(f_.heads / f_.heads_kv),
        token_q_(f_.cu_seqlens_q[sequence]),
        token_k_(f_.cu_seqlens_k[sequence]),
        queries_(f_.cu_seqlens_q[sequence + 1] - token_q_),
        keys_(f_.cu_seqlens_k[sequence + 1] - token_k_),
        rows_(round_up(queries_, kLanes)),
        units_(round_up(f_.head_dim / Path::kUnit, 16)),
        columns_(round_up(f_.head_dim, 16)) {
    Arena arena(scratch);
    k_ = arena.take<Element>(kAttentionKeys * units_ * Path::kUnit);
    v_ = arena.take<Element>(kAttentionKeys * units_ * Path::kUnit);
    dk_ = arena.take<float>(kAttentionKeys * columns_);
    dv_ = arena.take<float>(kAttentionKeys * columns_);
    q_rows_ = arena.take<Element>(kLanes * units_ * Path::kUnit);
    q_ = arena.take<float>(kLanes * units_);
    grad_rows_ = arena.take<Element>(kLanes * units_ * Path::kUnit);
    grad_ = arena.take<float>(kLanes * units_);
    p_t_ = arena.take<float>(kAttentionKeys * kLanes);
    d_t_ = arena.take<float>(kAttentionKeys * kLanes);
    used_ = f_.clip || f_.dropout ? arena.take<float>(kAttentionKeys * kLanes) : p_t_;
    if constexpr (Path::kPairs) {
      k_pairs_ = arena.take<float>(kAttentionKeys / 2 * columns_);
      q_pairs_ = arena.take<float>(kLanes / 2 * columns_);
      grad_pairs_ = arena.take<float>(kLanes / 2 * columns_);
      used_rows_ = arena.take<bf16>(kAttentionKeys * kLanes);
      d_rows_ = arena.take<bf16>(kAttentionKeys * kLanes);
      d_pairs_ = arena.take<float>(kAttentionKeys / 2 * kLanes);
      d_lanes_ = arena.take<float>(kAttentionKeys / 2 * kLanes);
    }
    slope_ = arena.take<float>(kAttentionKeys * kLanes);
    distance_bias_ = arena.take<float>(kAttentionKeys + kLanes);
    dq_ = arena.take<float>(group_ * rows_ * columns_);
    delta_ = arena.take<float>(group_ * rows_);
  }

  void run() {
    clear(dq_, group_ * rows_ * columns_);
    if (p_.diagonals)
      for (int64_t g = 0; g < group_; ++g) clear(diagonals_of(head_of(g)), queries_ + keys_);
    // From the probabilities where `out` does not hold the sum (clip), or holds it rounded to 16
    // bits and sums along diagonals would magnify that.
    if (f_.clip || (p_.diagonals && sizeof(T) < sizeof(float))) {
      clear(delta_, group_ * rows_);
      for_blocks([&](int64_t g, int64_t row, KeyRange keys) { add_delta(g, row, keys); }, false);
    } else {
      for (int64_t g = 0; g < group_; ++g) fill_delta(g);
    }
    for_blocks([&](int64_t g, int64_t row, KeyRange keys) { add_gradients(g, row, keys); }, true);
    for (int64_t g = 0; g < group_; ++g)
      store_rows(dq_ + g * rows_ * columns_, queries_, p_.dq, token_q_, head_of(g));
  }

 private:
  static void clear(float* x, int64_t count) {
    std::memset(x, 0, static_cast<size_t>(count) * sizeof(float));
  }
  int64_t head_of(int64_t g) const { return head_kv_ * group_ + g; }
  int64_t rows_at(int64_t row) const { return queries_ - row < kLanes ? queries_ - row : kLanes; }
  float* diagonals_of(int64_t head) const {
    return p_.diagonals + head * p_.diagonals_stride + token_q_ + token_k_;
  }

  // body(head of the group, first query, keys within the current block) for every block of queries
  // that sees some of a block of keys.
  template <class Body>
  void for_blocks(const Body& body, bool with_gradients) {
    const Head<T> key(f_.k, head_kv_, token_k_, f_.head_dim);
    const Head<T> value(f_.v, head_kv_, token_k_, f_.head_dim);
    for (block_ = 0; block_ < keys_; block_ += kAttentionKeys) {
      block_keys_ = keys_ - block_ < kAttentionKeys ? keys_ - block_ : kAttentionKeys;
      const int64_t padded = round_up(block_keys_, 32);
      const int64_t row_length = units_ * Path::kUnit;
      pack_rows(key, block_, block_keys_, padded, f_.head_dim, row_length, k_);
      pack_rows(value, block_, block_keys_, padded, f_.head_dim, row_length, v_);
      if constexpr (Path::kPairs)
        pack_row_pairs(key, block_, block_keys_, padded, f_.head_dim, columns_, k_pairs_);
      clear(dk_, kAttentionKeys * columns_);
      clear(dv_, kAttentionKeys * columns_);
      for (int64_t g = 0; g < group_; ++g)
        for (int64_t row = 0; row < queries_; row += kLanes) {
          const KeyRange seen =
              visible_keys(f_, row, row + rows_at(row) - 1, keys_ - queries_, keys_);
          const int64_t last = seen.end - block_;
          const int64_t first = seen.begin > block_ ? (seen.begin - block_) / 32 * 32 : 0;
          const KeyRange keys{first, last < block_keys_ ? last : block_keys_};
          if (seen.begin < seen.end && keys.begin < keys.end) body(g, row, keys);
        }
      if (with_gradients) {
        store_rows(dk_, block_keys_, p_.dk, token_k_ + block_, head_kv_);
        store_rows(dv_, block_keys_, p_.dv, token_k_ + block_, head_kv_);
      }
    }
  }

  void store_rows(const float* src, int64_t rows, const AttentionGradient& to, int64_t token,
                  int64_t head) const {
    T* dst = static_cast<T*>(to.data) + token * to.token_stride + head * to.head_stride;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < f_.head_dim; c += Vec::kWidth)
        store(Vec::load(src + r * columns_ + c), dst + r * to.token_stride + c,
              vector_part(f_.head_dim - c));
  }

  void fill_delta(int64_t g) {
    const Head<T> out(p_.out, head_of(g), token_q_, f_.head_dim);
    const Head<T> grad(p_.grad_out, head_of(g), token_q_, f_.head_dim);
    for (int64_t r = 0; r < queries_; ++r) {
      Vec sum = Vec::zero();
      for (int64_t c = 0; c < f_.head_dim; c += Vec::kWidth) {
        const int n = vector_part(f_.head_dim - c);
        sum = fma(out.at(r, c, n), grad.at(r, c, n), sum);
      }
      delta_[g * rows_ + r] = reduce_add(sum);
    }
    clear(delta_ + g * rows_ + queries_, rows_ - queries_);
  }

  // The keys that a product takes for so many; what fills them up is 0.
  static int64_t steps(int64_t keys) {
    return round_up(keys, Path::kKeyRows < Path::kKeyStep ? Path::kKeyStep : Path::kKeyRows);
  }

  // Rows of lanes and, transposed, units of lanes.
  void pack_queries(const Head<T>& from, int64_t row, int64_t rows, Element* to_rows,
                    float* to_units) const {
    pack_rows(from, row, rows, kLanes, f_.head_dim, units_ * Path::kUnit, to_rows);
    transpose_units(reinterpret_cast<const float*>(to_rows), units_, kLanes, units_, to_units,
                    kLanes);
  }

  // Fills p_t_, used_, d_t_ and, with softcap, slope_ for a block of queries and `keys`.
  void probabilities(int64_t g, int64_t row, KeyRange keys) {
    const int64_t head = head_of(g), rows = rows_at(row), count = keys.end - keys.begin;
    const Head<T> query(f_.q, head, token_q_, f_.head_dim);
    const Head<T> grad(p_.grad_out, head, token_q_, f_.head_dim);
    pack_queries(query, row, rows, q_rows_, q_);
    pack_queries(grad, row, rows, grad_rows_, grad_);
    const int64_t first = keys.begin * units_ * Path::kUnit;
    Path::template scores<2>(k_ + first, units_, f_.head_dim, q_, count, p_t_);
    Path::template scores<2>(v_ + first, units_, f_.head_dim, grad_, count, d_t_);

    const float* bias = nullptr;
    if (f_.by_distance) {
      const int64_t nearest = block_ + keys.end - 1;
      fill_distance_bias(f_, sequence_, head, row + keys_ - queries_ - nearest, count + kLanes - 1,
                         distance_bias_);
      bias = distance_bias_ + count - 1;
    }
    if (f_.softcap > 0) fill_softcap_slope(count);
    Vec unused[2] = {Vec::zero(), Vec::zero()};
    finish_scores<2>(f_, bias, count, p_t_, unused);

    float logsumexp[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const float lse = lane < rows ? p_.logsumexp[head * f_.total_q + token_q_ + row + lane] : 0;
      // Rows that see no key, and lanes past the last row, get probability 0.
      logsumexp[lane] = lane >= rows || lse == -__builtin_inff() ? -kHidden : lse * kLog2e;
    }
    const Vec slope = Vec::set(f_.clip_slope), offset = Vec::set(f_.clip_offset);
    const Vec one = Vec::set(1.0f), zero = Vec::zero();
    for (int64_t at = 0; at < count * kLanes; at += Vec::kWidth) {
      const Vec e =
          exp2<Path::kExpDegree>(Vec::load(p_t_ + at) - Vec::load(logsumexp + at % kLanes));
      e.store(p_t_ + at);
      if (f_.clip) {
        const Vec stretched = fma(e, slope, offset);
        const Vec d = Vec::load(d_t_ + at) * slope;
        min(one, max(zero, stretched)).store(used_ + at);
        select(stretched < zero, zero, select(one < stretched, zero, d)).store(d_t_ + at);
      } else if (f_.dropout) {
        e.store(used_ + at);
      }
    }
    const int64_t surplus = (steps(count) - count) * kLanes;
    clear(used_ + count * kLanes, surplus);
    clear(d_t_ + count * kLanes, surplus);
    if (f_.softcap > 0) clear(slope_ + count * kLanes, surplus);
    if (f_.dropout) {
      const int64_t first = block_ + keys.begin, last = block_ + keys.end;
      apply_dropout(f_, head, token_q_ + row, first, last, used_);
      apply_dropout(f_, head, token_q_ + row, first, last, d_t_);
    }
  }

  // slope_ = d softcapped score / d score = 1 - tanh(score / softcap)^2, from the products in p_t_.
  void fill_softcap_slope(int64_t count) {
    const Vec to_cap = Vec::set(f_.softmax_scale / f_.softcap);
    for (int64_t at = 0; at < count * kLanes; at += Vec::kWidth)
      Tanh::derivative(Vec::load(p_t_ + at) * to_cap).store(slope_ + at);
  }

  void add_delta(int64_t g, int64_t row, KeyRange keys) {
    probabilities(g, row, keys);
    float* delta = delta_ + g * rows_ + row;
    for (int v = 0; v < 2; ++v) {
      Vec sum = Vec::load(delta + v * Vec::kWidth);
      for (int64_t key = 0; key < keys.end - keys.begin; ++key) {
        const int64_t at = key * kLanes + v * Vec::kWidth;
        sum = fma(Vec::load(p_t_ + at), Vec::load(d_t_ + at), sum);
      }
      sum.store(delta + v * Vec::kWidth);
    }
  }

  void add_gradients(int64_t g, int64_t row, KeyRange keys) {
    probabilities(g, row, keys);
    const int64_t rows = rows_at(row), count = keys.end - keys.begin;
    const float* delta = delta_ + g * rows_ + row;
    for (int64_t at = 0; at < count * kLanes; at += Vec::kWidth) {
      const Vec d = Vec::load(d_t_ + at) - Vec::load(delta + at % kLanes);
      (Vec::load(p_t_ + at) * d).store(d_t_ + at);
    }
    if (p_.diagonals) add_diagonals(g, row, keys);
    const Vec scale = Vec::set(f_.softmax_scale);
    const auto gradient = [&](int64_t at) {
      const Vec d = Vec::load(d_t_ + at) * scale;
      return f_.softcap > 0 ? d * Vec::load(slope_ + at) : d;
    };
    float* dk = dk_ + keys.begin * columns_;
    float* dv = dv_ + keys.begin * columns_;
    float* dq = dq_ + (g * rows_ + row) * columns_;
    if constexpr (Path::kPairs) {
      const int64_t padded = steps(count);
      for (int64_t at = 0; at < padded * kLanes; at += 2 * kLanes)
        for (int64_t lane = at; lane < at + kLanes; lane += Vec::kWidth) {
          const Vec low = gradient(lane), high = gradient(lane + kLanes);
          low.store(d_rows_ + lane);
          high.store(d_rows_ + lane + kLanes);
          Path::pair(low, high).store(d_pairs_ + at / 2 + (lane - at));
          Vec::load(used_ + lane).store(used_rows_ + lane);
          Vec::load(used_ + lane + kLanes).store(used_rows_ + lane + kLanes);
        }
      const Head<T> query(f_.q, head_of(g), token_q_, f_.head_dim);
      const Head<T> grad(p_.grad_out, head_of(g), token_q_, f_.head_dim);
      pack_row_pairs(query, row, rows, kLanes, f_.head_dim, columns_, q_pairs_);
      pack_row_pairs(grad, row, rows, kLanes, f_.head_dim, columns_, grad_pairs_);
      const auto units = [](const bf16* matrix) { return reinterpret_cast<const float*>(matrix); };
      Path::add_by_keys(units(used_rows_), grad_pairs_, count, rows, columns_, dv);
      Path::add_by_keys(units(d_rows_), q_pairs_, count, rows, columns_, dk);
      Path::add_by_lanes(d_pairs_, k_pairs_ + keys.begin / 2 * columns_, rows, padded, columns_,
                         d_lanes_, dq);
    } else {
      for (int64_t at = 0; at < count * kLanes; at += Vec::kWidth) gradient(at).store(d_t_ + at);
      Path::add_by_keys(used_, grad_rows_, count, rows, columns_, dv);
      Path::add_by_keys(d_t_, q_rows_, count, rows, columns_, dk);
      Path::add_by_lanes(d_t_, k_ + keys.begin * columns_, rows, count, columns_, nullptr, dq);
    }
  }

  void add_diagonals(int64_t g, int64_t row, KeyRange keys) {
    float* diagonals = diagonals_of(head_of(g)) + row + keys_ - 1 - block_;
    for (int64_t key = keys.begin; key < keys.end; ++key)
      for (int64_t lane = 0; lane < rows_at(row); lane += Vec::kWidth) {
        const int n = vector_part(rows_at(row) - lane);
        float* sum = diagonals + lane - key;
        const float* at = d_t_ + (key - keys.begin) * kLanes + lane;
        store(load(sum, n) + load(at, n), sum, n);
      }
  }

  const AttentionBackwardParams& p_;
  const AttentionParams& f_;
  const int64_t sequence_, head_kv_, group_, token_q_, token_k_, queries_, keys_, rows_, units_,
      columns_;
  int64_t block_ = 0, block_keys_ = 0;
  Element *k_, *v_;               // [key][unit]
  float *dk_, *dv_;               // [key][column]
  Element *q_rows_, *grad_rows_;  // [lane][unit]
  float *q_, *grad_;              // [unit][lane]
  float* p_t_;                    // softmax, [key][lane]
  float* used_;                   // what multiplied V: after clipping and dropout
  float* d_t_;                    // gradient of the softmax, then of the scores
  // Copies as bf16, of what the last three products multiply.
  float* k_pairs_;                // [key / 2][column]
  float *q_pairs_, *grad_pairs_;  // [lane / 2][column]
  bf16 *used_rows_, *d_rows_;     // [key][lane]
  float *d_pairs_, *d_lanes_;     // [key / 2][lane]; [lane][key / 2]
  float* slope_;                  // of the softcap
  float* distance_bias_;          // of lane 0's row and the last key first
  float* dq_;                     // [head of the group][query][column]
  float* delta_;                  // [head of the group][query]
};

}  // namespace

void attention_backward_f32(const AttentionBackwardParams& p, int64_t sequence, int64_t head_kv,
                            void* scratch) {
  Backward<float, Floats>(p, sequence, head_kv, scratch).run();
}
void attention_backward_bf16(const AttentionBackwardParams& p, int64_t sequence, int64_t head_kv,
                             void* scratch) {
#if defined(TAUT_ISA_amx)
  tile_configure(product_tiles(16, 64));
#endif
  Backward<bf16, BestBf16Path>(p, sequence, head_kv, scratch).run();
#if defined(TAUT_ISA_amx)
  tile_release();
#endif
}
void attention_backward_f16(const AttentionBackwardParams& p, int64_t sequence, int64_t head_kv,
                            void* scratch) {
  Backward<f16, Floats>(p, sequence, head_kv, scratch).run();
}

}  // namespace TAUT_ISA
}  // namespace taut
