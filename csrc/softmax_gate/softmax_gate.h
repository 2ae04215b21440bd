// The last step of SaFEM: weights the features of each pixel by a softmax over its channels.
//
//   out[n, c, y, x] = C * s[c] * input[n, c, y, x],   s = softmax over c of logits[n, :, y, x]
//
// Backward, with g = grad_output:
//   grad_input[c] = C * s[c] * g[c]
//   grad_logits[c] = C * s[c] * (g[c] * input[c] - sum_d s[d] * g[d] * input[d])
#pragma once

#include <cstdint>

#include "../common/kernels.h"

namespace danet {

struct SoftmaxGateParams {
  int64_t N, C, P;  // P = H * W pixels per image
};

// The CPU kernels of one dtype. They compute the pixels n * P + i in [begin, end); `scratch` has scratch_size bytes.
struct SoftmaxGateKernels {
  int64_t (*scratch_size)(const SoftmaxGateParams&);
  void (*forward)(
      const SoftmaxGateParams&, ImageView input, ImageView logits, ImageView out, int64_t begin, int64_t end,
      char* scratch);
  void (*backward)(
      const SoftmaxGateParams&, ImageView grad_output, ImageView input, ImageView logits, ImageView grad_input,
      ImageView grad_logits, int64_t begin, int64_t end, char* scratch);
};

DANET_DECLARE_KERNELS(SoftmaxGateKernels, softmax_gate_kernels)

}  // namespace danet
