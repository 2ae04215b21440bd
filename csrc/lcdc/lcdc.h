// LCDC: a convolution along the channels at every position, zero outside the channels.
//
//   a[n, c, i] = sum_{j < k} weight[p, j] * input[n, c + j - k / 2, i],   p = 0 (shared) or i = y * W + x
//   out = a, or with gate sigmoid(a) * input
//
// Backward, with g = grad_output and d = g (gate: g * input * s * (1 - s), s = sigmoid(a)):
//   grad_input[c] = sum_j weight[p, j] * d[c - j + k / 2]  (gate: + g[c] * s[c])
//   grad_weight[p, j] = sum d[c] * input[c + j - k / 2] over c and whatever shares weight[p]
#pragma once

#include <cstdint>

#include "../common/kernels.h"

namespace danet {

struct LcdcParams {
  int64_t N, C, P, k;  // P = H * W positions
  bool shared, gate;   // shared: weight is [1, k], else [P, k]
};

// The CPU kernels of one type; weight [1 or P, k] is contiguous.
struct LcdcKernels {
  int64_t (*scratch_size)(const LcdcParams&);
  // Pixels n * P + i of [begin, end).
  void (*forward)(
      const LcdcParams&, ImageView input, const void* weight, ImageView out, int64_t begin, int64_t end, char* scratch);
  // shared: pixels [begin, end), their sum to partial [k]. Else: positions [begin, end) of all images, to grad_weight.
  void (*backward)(
      const LcdcParams&, ImageView grad_output, ImageView input, const void* weight, ImageView grad_input,
      double* partial, void* grad_weight, int64_t begin, int64_t end, char* scratch);
  // count numbers, converted to the type.
  void (*store)(const double* from, void* to, int64_t count);
};

DANET_DECLARE_KERNELS(LcdcKernels, lcdc_kernels)

}  // namespace danet
