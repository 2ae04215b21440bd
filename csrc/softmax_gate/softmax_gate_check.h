// Checks the tensors of a call of softmax_gate on any device, and returns its sizes. The kernels rely on these checks
// for memory safety.
#pragma once

#include "../common/tensor.h"
#include "softmax_gate.h"

namespace danet {

inline SoftmaxGateParams check_softmax_gate(const Tensor& input, const Tensor& logits) {
  check_input("softmax_gate", input);
  check_like("softmax_gate", "logits", logits, input, input.sizes());
  return {input.size(0), input.size(1), input.size(2) * input.size(3)};
}

}  // namespace danet
