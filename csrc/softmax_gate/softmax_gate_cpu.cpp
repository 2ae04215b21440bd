// The torch operators softmax_gate and softmax_gate_backward on the CPU: argument checks, memory and threads.
#include <tuple>

#include "../common/threads.h"
#include "softmax_gate_check.h"

namespace danet {
namespace {

Tensor softmax_gate(const Tensor& input, const Tensor& logits) {
  const SoftmaxGateParams p = check_softmax_gate(input, logits);
  const SoftmaxGateKernels& kernels = DANET_KERNELS(softmax_gate_kernels, dtype_of(input));
  const Image x(input), weights(logits), out(empty_image(input, input.sizes()));
  parallel_for(p.N * p.P, 2 * p.C, [&](int64_t begin, int64_t end) {
    Scratch scratch(kernels.scratch_size(p));
    kernels.forward(p, x.view, weights.view, out.view, begin, end, scratch.get());
  });
  return out.tensor;
}

std::tuple<Tensor, Tensor> softmax_gate_backward(const Tensor& grad_output, const Tensor& input, const Tensor& logits) {
  const SoftmaxGateParams p = check_softmax_gate(input, logits);
  check_like("softmax_gate", "grad_output", grad_output, input, input.sizes());
  const SoftmaxGateKernels& kernels = DANET_KERNELS(softmax_gate_kernels, dtype_of(input));
  const Image grad(grad_output), x(input), weights(logits);
  const Image grad_input(empty_image(input, input.sizes())), grad_logits(empty_image(input, input.sizes()));
  parallel_for(p.N * p.P, 4 * p.C, [&](int64_t begin, int64_t end) {
    Scratch scratch(kernels.scratch_size(p));
    kernels.backward(p, grad.view, x.view, weights.view, grad_input.view, grad_logits.view, begin, end, scratch.get());
  });
  return {grad_input.tensor, grad_logits.tensor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) {
  library.impl("softmax_gate", TORCH_BOX(&softmax_gate));
  library.impl("softmax_gate_backward", TORCH_BOX(&softmax_gate_backward));
}

}  // namespace danet
