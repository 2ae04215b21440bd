// The softmax over one row of channels, for the CPU kernels.
#pragma once

#include "../common/lanes.h"

namespace danet {
namespace {

// exp(logits - shift) to `exps`, their sum to `sum`; the shift is zero for moderate logits, else their maximum.
template <typename A, typename T>
DANET_INLINE A exponentials(const T* logits, A* exps, int64_t C) {
  Mask<A> large{};
  Vec<A> sum{};
  for_vectors_of<A>(C, [&](int64_t c, int count) {
    Vec<A> v = load_channels(logits + c, count);
    large |= ~((v < A(20)) & (v > A(-20)));
    v = exp_unchecked(v);
    if (count != 0) v = keep_first<A>(v, count);
    store(exps + c, v);
    sum += v;
  });
  if (!any<A>(large)) return sum_lanes<A>(sum);

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

}  // namespace
}  // namespace danet
