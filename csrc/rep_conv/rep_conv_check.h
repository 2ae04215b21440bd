// Checks the tensors of a call of rep_conv on any device, and returns its sizes. The kernels rely on these checks for
// memory safety.
#pragma once

#include <optional>

#include "../common/tensor.h"
#include "rep_conv.h"

namespace danet {

inline RepConvParams check_rep_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride, bool relu) {
  check_input("rep_conv", input);
  DANET_CHECK(weight.dim() == 4, "rep_conv: weight must be [C_out, C, 3, 3]");
  const RepConvParams p{input.size(0), input.size(1), weight.size(0), input.size(2), input.size(3), relu, stride};
  check_like("rep_conv", "weight", weight, input, {p.C_out, p.C, 3, 3});
  if (bias) check_like("rep_conv", "bias", *bias, input, {p.C_out});
  DANET_CHECK(p.C >= 1 && p.C_out >= 1 && p.H >= 1 && p.W >= 1, "rep_conv: sizes must be at least 1");
  DANET_CHECK(stride == 1 || stride == 2, "rep_conv: stride must be 1 or 2");
  return p;
}

}  // namespace danet
