// Products of float matrices, for the CPU kernels: rows of values times panels of weights, whose sums stay in registers
// until they are handed on.
#pragma once

#include "vec.h"

namespace danet {
namespace {

using F = Vec<float>;

// Columns of the product in a panel: two vectors. A matrix [columns, C] is kept as panels [ceil(columns / kPanel), C,
// kPanel] with zeros beyond.
constexpr int kPanel = 2 * kLanes<float>;
// Rows in registers at once: sums, two weights and a row's value fill AVX2's 16 registers with 6, AVX-512's 32 with 12.
constexpr int kRows = kVectorBytes == 64 ? 12 : 6;

inline int64_t panel_count(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// finish(row, low, high) with the two vectors of sum_c rows[row][c] * weight[c][panel]; rows are `stride` apart. While the
// first rows are worked on, ahead(c) may bring what is needed next into the second-level cache.
template <int kCount, typename Ahead, typename Finish>
DANET_INLINE void multiply(
    const float* rows, int64_t first, int64_t stride, const float* weight, int64_t C, const Ahead& ahead,
    const Finish& finish) {
  constexpr int L = kLanes<float>;
  F sum[kCount][2] = {};
  const float* threes[(kCount + 2) / 3];  // every third row: a register for each row would be too many
#pragma GCC unroll 4
  for (int i = 0; i < (kCount + 2) / 3; ++i) threes[i] = rows + (first + 3 * i) * stride;
  for (int64_t c = 0; c < C; ++c) {
    F w0 = load(weight + c * kPanel), w1 = load(weight + c * kPanel + L);
    if (first == 0) ahead(c);
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

// In parts of at most kRows rows, as equal as can be.
template <typename Ahead, typename Finish>
DANET_INLINE void multiply_rows(
    const float* rows, int64_t count, int64_t stride, const float* weight, int64_t C, const Ahead& ahead,
    const Finish& finish) {
  const int64_t parts = (count + kRows - 1) / kRows;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = count * part / parts;
    auto step = [&](auto some) { multiply<some()>(rows, first, stride, weight, C, ahead, finish); };
    switch (count * (part + 1) / parts - first) {
      case 1: step(std::integral_constant<int, 1>{}); break;
      case 2: step(std::integral_constant<int, 2>{}); break;
      case 3: step(std::integral_constant<int, 3>{}); break;
      case 4: step(std::integral_constant<int, 4>{}); break;
      case 5: step(std::integral_constant<int, 5>{}); break;
      case 6: step(std::integral_constant<int, 6>{}); break;
      case 7: step(std::integral_constant<int, (kRows < 7 ? 1 : 7)>{}); break;
      case 8: step(std::integral_constant<int, (kRows < 7 ? 1 : 8)>{}); break;
      case 9: step(std::integral_constant<int, (kRows < 7 ? 1 : 9)>{}); break;
      case 10: step(std::integral_constant<int, (kRows < 7 ? 1 : 10)>{}); break;
      case 11: step(std::integral_constant<int, (kRows < 7 ? 1 : 11)>{}); break;
      case 12: step(std::integral_constant<int, (kRows < 7 ? 1 : 12)>{}); break;
    }
  }
}

// The panels of weight [columns, C].
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
