// Checks the tensors of a call of LCDC on any device, and returns its sizes. The kernels rely on these checks for
// memory safety.
#pragma once

#include "../common/tensor.h"
#include "lcdc.h"

namespace danet {

inline LcdcParams check_lcdc(const Tensor& input, const Tensor& weight, bool gate) {
  check_input("lcdc", input);
  const int64_t P = input.size(2) * input.size(3);
  DANET_CHECK(
      weight.dim() == 2 && (weight.size(0) == 1 || weight.size(0) == P) && weight.size(1) % 2 == 1,
      "lcdc: weight must be [1 or H*W, k] with k odd");
  check_like("lcdc", "weight", weight, input, weight.sizes());
  return {input.size(0), input.size(1), P, weight.size(1), weight.size(0) == 1, gate};
}

}  // namespace danet
