// Float matrix products for the CPU kernels: a few rows times a panel of weights, accumulated in registers. The
// caller's `finish` receives the accumulators, so that bias and activation are applied before the only store.
#pragma once

#include "vec.h"

namespace danet {
namespace {

using F = Vec<float>;

// Columns per panel: two vectors. A weight matrix [columns, C] is stored as panels [ceil(columns / kPanel), C, kPanel],
// padded with zeros.
constexpr int kPanel = 2 * kLanes<float>;
// Rows per register block: the accumulators (two per row), two weights and one input value fill the 16 registers of
// AVX2 with 6 rows and the 32 registers of AVX-512 with 12.
constexpr int kMaxRows = kVectorBytes == 64 ? 12 : 6;

inline int64_t panel_count(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Calls finish(row, low, high) with the two vectors of sum_c rows[row][c] * weight[c][panel] for kCount rows from
// `first` on, which are `stride` elements apart. prefetch(c) is called while the first block of rows is computed; it
// may prefetch what is needed next into the L2 cache.
template <int kCount, typename Prefetch, typename Finish>
DANET_INLINE void multiply(
    const float* rows, int64_t first, int64_t stride, const float* weight, int64_t C, const Prefetch& prefetch,
    const Finish& finish) {
  constexpr int L = kLanes<float>;
  F sum[kCount][2] = {};
  // One pointer per three rows: one per row would need too many registers.
  const float* threes[(kCount + 2) / 3];
#pragma GCC unroll 4
  for (int i = 0; i < (kCount + 2) / 3; ++i) threes[i] = rows + (first + 3 * i) * stride;
  for (int64_t c = 0; c < C; ++c) {
    // Load the weights of channel c, and add their products with every row.
    F w0 = load(weight + c * kPanel), w1 = load(weight + c * kPanel + L);
    if (first == 0) prefetch(c);
#pragma GCC unroll 12
    for (int t = 0; t < kCount; ++t) {
      F value = broadcast<float>(threes[t / 3][t % 3 * stride]);
      sum[t][0] += value * w0;
      sum[t][1] += value * w1;
    }
#pragma GCC unroll 4
    for (int i = 0; i < (kCount + 2) / 3; ++i) threes[i] = opaque_pointer(threes[i] + 1);
  }
#pragma GCC unroll 12
  for (int t = 0; t < kCount; ++t) finish(first + t, sum[t][0], sum[t][1]);
}

// Any number of rows: blocks of at most kMaxRows rows, of nearly equal size.
template <typename Prefetch, typename Finish>
DANET_INLINE void multiply_rows(
    const float* rows, int64_t count, int64_t stride, const float* weight, int64_t C, const Prefetch& prefetch,
    const Finish& finish) {
  const int64_t parts = (count + kMaxRows - 1) / kMaxRows;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = count * part / parts;
    auto step = [&](auto some) { multiply<some()>(rows, first, stride, weight, C, prefetch, finish); };
    switch (count * (part + 1) / parts - first) {
      case 1: step(std::integral_constant<int, 1>{}); break;
      case 2: step(std::integral_constant<int, 2>{}); break;
      case 3: step(std::integral_constant<int, 3>{}); break;
      case 4: step(std::integral_constant<int, 4>{}); break;
      case 5: step(std::integral_constant<int, 5>{}); break;
      case 6: step(std::integral_constant<int, 6>{}); break;
      case 7: step(std::integral_constant<int, (kMaxRows < 7 ? 1 : 7)>{}); break;
      case 8: step(std::integral_constant<int, (kMaxRows < 7 ? 1 : 8)>{}); break;
      case 9: step(std::integral_constant<int, (kMaxRows < 7 ? 1 : 9)>{}); break;
      case 10: step(std::integral_constant<int, (kMaxRows < 7 ? 1 : 10)>{}); break;
      case 11: step(std::integral_constant<int, (kMaxRows < 7 ? 1 : 11)>{}); break;
      case 12: step(std::integral_constant<int, (kMaxRows < 7 ? 1 : 12)>{}); break;
    }
  }
}

// Packs the matrix weight [columns, C] into panels.
inline void pack_panels(const float* weight, int64_t columns, int64_t C, float* panels) {
  for (int64_t panel = 0; panel < panel_count(columns); ++panel)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t lane = 0; lane < kPanel; ++lane) {
        const int64_t column = panel * kPanel + lane;
        *panels++ = column < columns ? weight[column * C + c] : 0;
      }
}

}  // namespace
}  // namespace danet
