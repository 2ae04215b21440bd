// Calls torch's own convolution (oneDNN on the CPU, cuDNN on CUDA devices), for the cases where it is faster than ours.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "../common/tensor.h"

namespace danet {

// Returns [N, C_out, ceil(H / stride), ceil(W / stride)]. ReLU is a second pass over the output.
inline Tensor call_torch_convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride, bool relu) {
  using torch::stable::detail::from;
  const std::vector<int64_t> strides{stride, stride}, ones{1, 1}, zeros{0, 0};
  const std::vector<int64_t> padding(2, weight.size(2) / 2);
  std::array<StableIValue, 9> stack{from(input), from(weight), from(bias),  from(strides),   from(padding),
                                    from(ones),  from(false),  from(zeros), from(int64_t(1))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  if (relu) TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::relu_", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace danet
