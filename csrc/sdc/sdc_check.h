// The sizes of a call of SDC, DCNv3 or DCNv4, on any device; its guard of memory safety.
#pragma once

#include "../common/tensor.h"
#include "sdc.h"

namespace danet {

struct SdcOptions {
  int64_t groups, kernel_size[2], stride[2], padding[2], dilation[2];  // (y, x)
  double offset_scale;
  bool softmax, remove_center;
};

// All but what depends on where offset and mask are.
inline SdcParams check_windows(const char* op, const Tensor& input, const SdcOptions& options) {
  check_input(op, input);
  SdcParams p{};
  p.N = input.size(0), p.C = input.size(1), p.H = input.size(2), p.W = input.size(3), p.G = options.groups;
  p.offset_scale = options.offset_scale, p.softmax = options.softmax, p.remove_center = options.remove_center;
  DANET_CHECK(p.C > 0 && p.H > 0 && p.W > 0, op, ": input must have C, H, W >= 1");
  DANET_CHECK(p.G >= 1 && p.C % p.G == 0, op, ": groups must divide C");
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t k = options.kernel_size[axis], s = options.stride[axis];
    const int64_t pad = options.padding[axis], d = options.dilation[axis];
    for (int64_t value : {k, s, d, pad + 1})
      DANET_CHECK(value >= 1 && value < (1 << 24), op, ": kernel_size, stride, padding or dilation out of range");
    p.kernel_size[axis] = k, p.stride[axis] = s, p.padding[axis] = pad, p.dilation[axis] = d;
    const int64_t rest = input.size(2 + axis) + 2 * pad - (d * (k - 1) + 1);
    DANET_CHECK(rest >= 0, op, ": input must be as large as the window");
    out[axis] = rest / s + 1;
  }
  p.H_out = out[0], p.W_out = out[1];
  p.K = p.kernel_size[0] * p.kernel_size[1] - (p.remove_center ? 1 : 0);
  DANET_CHECK(p.K >= 1 && (!p.remove_center || p.K % 2 == 0), op, ": remove_center needs an odd kernel_size above 1");
  return p;
}

// Of SDC, and of DCNv3, which has its own order of taps and pairs.
inline SdcParams check_sdc(
    bool is_dcnv3, const Tensor& input, const Tensor& offset, const Tensor& mask, const SdcOptions& options) {
  const char* op = is_dcnv3 ? "dcnv3" : "sdc";
  SdcParams p = check_windows(op, input, options);
  p.x_first = is_dcnv3, p.offset_group = 2 * p.K, p.mask_group = p.K;
  check_like(op, "offset", offset, input, {p.N, 2 * p.G * p.K, p.H_out, p.W_out});
  check_like(op, "mask", mask, input, {p.N, p.G * p.K, p.H_out, p.W_out});
  return p;
}

// Of DCNv4: for every group its offsets and then its mask, in DCNv3's order; perhaps more channels, which are not used.
inline SdcParams check_dcnv4(const Tensor& input, const Tensor& offset_mask, const SdcOptions& options) {
  SdcParams p = check_windows("dcnv4", input, options);
  p.x_first = true, p.offset_group = p.mask_group = 3 * p.K;
  DANET_CHECK(
      offset_mask.dim() == 4 && offset_mask.size(1) >= 3 * p.G * p.K, "dcnv4: offset_mask has too few channels");
  check_like("dcnv4", "offset_mask", offset_mask, input, {p.N, offset_mask.size(1), p.H_out, p.W_out});
  return p;
}

// The mask in DCNv4's tensor.
inline ImageView mask_of(const SdcParams& p, const Image& offset_mask) {
  ImageView view = offset_mask.view;
  view.data = static_cast<char*>(view.data) + 2 * p.K * int64_t(offset_mask.tensor.element_size());
  return view;
}

// DCNv4's tensor of gradients, of which the channels that are not used stay zero.
inline Image empty_offset_mask(const SdcParams& p, const Tensor& offset_mask) {
  Image grad(empty_image(offset_mask, offset_mask.sizes()));
  if (offset_mask.size(1) > 3 * p.G * p.K) torch::stable::zero_(grad.tensor);
  return grad;
}

}  // namespace danet
