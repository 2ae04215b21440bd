// LCDC, the paper's Local Cross-channel Depth-wise Convolution: a 1-D convolution along the channels at every position.
// Channels outside [0, C) count as zero.
//
//   a[n, c, i] = sum_{j < k} weight[p, j] * input[n, c + j - k / 2, i],   p = 0 (shared) or i = y * W + x
//   out = a, or with gate sigmoid(a) * input
//
// Backward, with g = grad_output and s = sigmoid(a); d = g, or with gate d = g * input * s * (1 - s):
//   grad_input[c] = sum_j weight[p, j] * d[c - j + k / 2]  (gate: + g[c] * s[c])
//   grad_weight[p, j] = sum d[n, c, i] * input[n, c + j - k / 2, i] over n, c and the positions i that use weight[p]
#pragma once

#include <cstdint>

#include "../common/kernels.h"

namespace danet {

struct LcdcParams {
  int64_t N, C, P, k;  // P = H * W positions
  bool shared, gate;   // shared: one kernel for all positions, weight is [1, k]; else weight is [P, k]
};

// The CPU kernels of one dtype. weight [1 or P, k] is contiguous; `scratch` has scratch_size bytes.
struct LcdcKernels {
  int64_t (*scratch_size)(const LcdcParams&);
  // Computes the pixels n * P + i in [begin, end).
  void (*forward)(
      const LcdcParams&, ImageView input, const void* weight, ImageView out, int64_t begin, int64_t end, char* scratch);
  // shared: computes the pixels in [begin, end) and writes their sum for grad_weight to partial [k]; grad_weight is
  // null. Otherwise: computes the positions [begin, end) of all images and their rows of grad_weight; partial is null.
  void (*backward)(
      const LcdcParams&, ImageView grad_output, ImageView input, const void* weight, ImageView grad_input,
      double* partial, void* grad_weight, int64_t begin, int64_t end, char* scratch);
  // Converts `count` values to the dtype.
  void (*convert)(const double* from, void* to, int64_t count);
};

DANET_DECLARE_KERNELS(LcdcKernels, lcdc_kernels)

}  // namespace danet
