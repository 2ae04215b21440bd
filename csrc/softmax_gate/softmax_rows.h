// Softmax over one row of channels, for the CPU kernels of softmax_gate and SaFEM.
#pragma once

#include "../common/lanes.h"
#include "../common/vec_math.h"

namespace danet {
namespace {

// Writes exp(logits - shift) to `exps` and returns the sum. The shift is 0 if all |logits| < 20, else the largest
// logit. A NaN logit makes the sum NaN.
template <typename A, typename T, typename Exp>
DANET_INLINE A exponentials(const T* logits, A* exps, int64_t C, const Exp& exp_of_small) {
  // One pass without a shift, which also finds out whether a shift is needed
  Mask<A> large{};
  Vec<A> sum{};
  for_vectors_of<A>(C, [&](int64_t c, int count) {
    Vec<A> v = load_channels(logits + c, count);
    large |= ~(magnitude(v) < A(20));
    v = exp_of_small(v);
    if (count != 0) v = keep_first<A>(v, count);
    store(exps + c, v);
    sum += v;
  });
  if (!any<A>(large)) return sum_lanes<A>(sum);

  // Find the maximum, then repeat with it as the shift
  A top = to_compute(logits[0]);
  for (int64_t c = 1; c < C; ++c) {
    A v = to_compute(logits[c]);
    top = v > top || v != v ? v : top;
  }
  sum = Vec<A>{};
  for_vectors_of<A>(C, [&](int64_t c, int count) {
    Vec<A> v = exp(load_channels(logits + c, count) - top);
    if (count != 0) v = keep_first<A>(v, count);
    store(exps + c, v);
    sum += v;
  });
  return sum_lanes<A>(sum);
}

template <typename A, typename T>
DANET_INLINE A exponentials(const T* logits, A* exps, int64_t C) {
  return exponentials<A>(logits, exps, C, [](Vec<A> v) __attribute__((always_inline)) { return exp_unchecked(v); });
}

}  // namespace
}  // namespace danet
