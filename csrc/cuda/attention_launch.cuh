// Which kernels serve which options, for the launchers and for the host executor alike.
//
// `launch(name, kernel, threads, shared bytes, units of work, params)` runs a kernel whose
// blocks share the units among themselves, however many blocks there are.
#pragma once
#include "cuda/attention_backward.cuh"

namespace taut {

inline Scores scores_of(const AttentionParams& p) {
  if (p.clip || p.dropout || p.softcap > 0 || p.relative_bias != nullptr) return Scores::all;
  return p.alibi_slopes != nullptr ? Scores::alibi : Scores::plain;
}

// Whether a sequence may be long.
inline bool has_long(const AttentionParams& p) {
  return p.total_q > kShortLength || p.total_k > kShortLength;
}

// Calls body.run<D, kScores>() for the smallest D that holds head_dim.
template <int D, class Body>
void with_scores(Scores scores, const Body& body) {
  switch (scores) {
    case Scores::plain: return body.template run<D, Scores::plain>();
    case Scores::alibi: return body.template run<D, Scores::alibi>();
    case Scores::all: return body.template run<D, Scores::all>();
  }
}
template <bool kHas96, class Body>
void with_shape(const AttentionParams& p, const Body& body) {
  const Scores scores = scores_of(p);
  if (p.head_dim <= 32) return with_scores<32>(scores, body);
  if (p.head_dim <= 64) return with_scores<64>(scores, body);
  if constexpr (kHas96) {
    if (p.head_dim <= 96) return with_scores<96>(scores, body);
  }
  if (p.head_dim <= 128) return with_scores<128>(scores, body);
  with_scores<256>(scores, body);
}

template <class T, class Launch>
struct ForwardLauncher {
  const AttentionParams& p;
  const Launch& launch;

  template <int D, Scores kScores>
  void run() const {
    using Short = ForwardShape<T, D, 4, 1, kScores>;
    // Tiles of 128 rows pay at the common sizes of heads. Warps of 32 rows halve the traffic of K
    // and V from shared memory; wider heads leave no registers for that and take more warps.
    constexpr bool kHasLong = kScores != Scores::all && (D == 64 || D == 128);
    if constexpr (kHasLong) {
      using Long = ForwardShape<T, D, D == 64 ? 4 : 8, D == 64 ? 2 : 1, kScores>;
      if (!p.on_hopper && has_long(p))
        launch("attention_long", attention_long_kernel<Long>, Long::kThreads, Long::kSharedBytes,
               int64_t{p.plan_items} * p.heads, p);
    }
    launch("attention_short", attention_short_kernel<Short, !kHasLong>, Short::kThreads,
           Short::kSharedBytes, int64_t{p.plan_items} * p.heads, p);
  }
};

template <class T, class Launch>
void launch_attention(const AttentionParams& p, const Launch& launch) {
  with_shape<true>(p, ForwardLauncher<T, Launch>{p, launch});
}

template <class T, class Launch>
struct BackwardLauncher {
  const AttentionBackwardParams& b;
  const Launch& launch;

  template <int D, Scores kScores>
  void run() const {
    using S = BackwardShape<T, D, kScores>;
    const AttentionParams& p = b.forward;
    const int heads_kv = p.heads / p.group;
    const auto run_phase = [&](BackwardPhase phase, int64_t units) {
      AttentionBackwardParams phased = b;
      phased.phase = phase;
      launch("attention_backward", attention_backward_kernel<S>, S::kThreads, S::kSharedBytes,
             units, phased);
    };
    run_phase(BackwardPhase::short_sequences, int64_t{p.batch} * heads_kv);
    if (p.on_hopper || !has_long(p)) return;
    constexpr int kTiles = kLongRows / kShortRows;
    run_phase(BackwardPhase::queries, kTiles * int64_t{p.plan_items} * p.heads);
    run_phase(BackwardPhase::keys, kTiles * int64_t{b.key_plan_items} * heads_kv);
  }
};

template <class T, class Launch>
void launch_attention_backward(const AttentionBackwardParams& b, const Launch& launch) {
  with_shape<false>(b.forward, BackwardLauncher<T, Launch>{b, launch});
}

}  // namespace taut
