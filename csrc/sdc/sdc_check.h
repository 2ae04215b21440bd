// The sizes of a call of SDC, on any device; its guard of memory safety.
#pragma once

#include "../common/tensor.h"
#include "sdc.h"

namespace danet {

inline SdcParams check_sdc(
    const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups,
    const int64_t (&kernel_size)[2], const int64_t (&stride)[2], const int64_t (&padding)[2],
    const int64_t (&dilation)[2], double offset_scale, bool softmax, bool remove_center) {
  check_input("sdc", input);
  SdcParams p{};
  p.N = input.size(0), p.C = input.size(1), p.H = input.size(2), p.W = input.size(3), p.G = groups;
  p.offset_scale = offset_scale, p.softmax = softmax, p.remove_center = remove_center;
  DANET_CHECK(p.C > 0 && p.H > 0 && p.W > 0, "sdc: input must have C, H, W >= 1");
  DANET_CHECK(groups >= 1 && p.C % groups == 0, "sdc: groups must divide C");
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    p.kernel_size[axis] = kernel_size[axis], p.stride[axis] = stride[axis];
    p.padding[axis] = padding[axis], p.dilation[axis] = dilation[axis];
    for (int64_t value : {kernel_size[axis], stride[axis], dilation[axis], padding[axis] + 1})
      DANET_CHECK(value >= 1 && value < (1 << 24), "sdc: kernel_size, stride, padding or dilation out of range");
    int64_t window = dilation[axis] * (kernel_size[axis] - 1) + 1;
    out[axis] = (input.size(2 + axis) + 2 * padding[axis] - window) / stride[axis] + 1;
    DANET_CHECK(input.size(2 + axis) + 2 * padding[axis] >= window, "sdc: input must be as large as the window");
  }
  p.H_out = out[0], p.W_out = out[1];
  p.K = kernel_size[0] * kernel_size[1] - (remove_center ? 1 : 0);
  DANET_CHECK(p.K >= 1 && (!remove_center || p.K % 2 == 0), "sdc: remove_center needs an odd kernel_size above 1");
  check_like("sdc", "offset", offset, input, {p.N, 2 * p.G * p.K, p.H_out, p.W_out});
  check_like("sdc", "mask", mask, input, {p.N, p.G * p.K, p.H_out, p.W_out});
  return p;
}

}  // namespace danet
