// Checks the tensors of a call of rep_conv on any device, and returns its sizes. The kernels rely on these checks for
// memory safety.
#pragma once

#include <optional>

#include "../common/tensor.h"
#include "rep_conv.h"

namespace danet {

// allows_float32_weight: whether weight and bias may be float32 for an input of 16 bits.
template <typename T>  // Tensor or Activation
RepConvParams check_rep_conv(
    const T& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride, bool relu,
    bool allows_float32_weight) {
  check_input("rep_conv", input);
  DANET_CHECK(
      weight.dim() == 4 && (weight.size(2) == 1 || weight.size(2) == 3),
      "rep_conv: weight must be [C_out, C, 3, 3] or [C_out, C, 1, 1]");
  const int64_t k = weight.size(2);
  const RepConvParams p{input.size(0), input.size(1), weight.size(0), input.size(2), input.size(3), relu, stride, k,
                        false};
  const ScalarType type = input.scalar_type();
  const bool has_float32_weight = allows_float32_weight && weight.scalar_type() == ScalarType::Float &&
                                  (type == ScalarType::Half || type == ScalarType::BFloat16);
  DANET_CHECK(has_float32_weight || weight.scalar_type() == type, "rep_conv: weight must have input's dtype");
  DANET_CHECK(is_on_device_of(weight, input), "rep_conv: weight must be on input's device");
  DANET_CHECK(weight.size(1) == p.C && weight.size(3) == k, "rep_conv: weight has the wrong shape");
  if (bias) check_like("rep_conv", "bias", *bias, weight, {p.C_out});
  DANET_CHECK(k == 3 || stride == 1, "rep_conv: a weight [C_out, C, 1, 1] needs stride 1");
  DANET_CHECK(p.C >= 1 && p.C_out >= 1 && p.H >= 1 && p.W >= 1, "rep_conv: sizes must be at least 1");
  DANET_CHECK(stride == 1 || stride == 2, "rep_conv: stride must be 1 or 2");
  return p;
}

}  // namespace danet
