// SDC: every output pixel of every group of channels samples its own K places of the input.
//
//   out[n, c, y, x] = sum_{k < K} m[n, g, k, y, x] * input[n, c, Y, X],   g = c / (C / G)
//   Y = y*s_y - p_y + h_y + scale * (k_y*d_y - h_y + offset[n, g, k, 0, y, x]),   the same for X with index 1
//
// h = d * (kernel_size - 1) / 2 (whole numbers), tap k = (k_y, k_x) row by row without the middle one where remove_center
// (in DCNv3's and DCNv4's order: column by column, and of the two offsets the one of X first), m the softmax of mask over the K taps, or mask itself. input[Y, X] is bilinear between the four pixels
// of the cell floor(Y), floor(X), zero outside the image. A NaN coordinate is a NaN sample forward and a zero sample
// backward, an infinite one a zero sample; the gradient of their offsets is zero.
#pragma once

#include <cstdint>

#include "../common/kernels.h"

namespace danet {

struct SdcParams {
  int64_t N, C, H, W, G, K, H_out, W_out;
  int64_t kernel_size[2], stride[2], padding[2], dilation[2];  // (y, x)
  double offset_scale;
  bool softmax, remove_center;
  bool x_first;                      // DCNv3's order
  int64_t offset_group, mask_group;  // elements from group to group: 2 K and K, or more in DCNv4's tensor of both
};

namespace {

// Y of output row 0 and tap k at offset zero is start + tap; a row adds stride, an offset offset_scale times itself.
DANET_HOST_DEVICE int64_t sdc_start(const SdcParams& p, int axis) {
  return p.dilation[axis] * (p.kernel_size[axis] - 1) / 2 - p.padding[axis];
}
DANET_HOST_DEVICE double sdc_tap(const SdcParams& p, int axis, int64_t k) {
  if (p.remove_center && k >= p.K / 2) ++k;
  const int inner = p.x_first ? 0 : 1;
  const int64_t side = axis == inner ? k % p.kernel_size[inner] : k / p.kernel_size[inner];
  return p.offset_scale * double(side * p.dilation[axis] - p.dilation[axis] * (p.kernel_size[axis] - 1) / 2);
}

// Weights of a cell's corners (top left, top right, bottom left, bottom right) times m; y and x: the place in the cell.
template <typename V>
DANET_HOST_DEVICE void bilinear(V y, V x, V m, V (&weight)[4]) {
  V bottom = y * m, top = m - bottom;
  weight[1] = top * x;
  weight[0] = top - weight[1];
  weight[3] = bottom * x;
  weight[2] = bottom - weight[3];
}

// From dot[corner] = sum_c grad_output * input at that corner: the derivatives by m, Y and X.
template <typename V>
DANET_HOST_DEVICE void bilinear_gradients(V y, V x, V m, const V (&dot)[4], V& grad_m, V& grad_y, V& grad_x) {
  V top = dot[0] + x * (dot[1] - dot[0]), bottom = dot[2] + x * (dot[3] - dot[2]);
  V left = dot[0] + y * (dot[2] - dot[0]), right = dot[1] + y * (dot[3] - dot[1]);
  grad_m = top + y * (bottom - top);
  grad_y = m * (bottom - top);
  grad_x = m * (right - left);
}

}  // namespace

// What the CPU kernels can take for K; larger windows are left to the reference.
constexpr int64_t kMaxTaps = 256;

// The CPU kernels of one type. Each call works on its own rows.
struct SdcKernels {
  // Rows n * H_out + y of [begin, end): out.
  void (*forward)(
      const SdcParams&, ImageView input, ImageView offset, ImageView mask, ImageView out, int64_t begin, int64_t end);
  // reach[row] = the first and last input row that the output row touches (clipped to the image; first > last: none).
  void (*reach)(const SdcParams&, ImageView offset, int64_t begin, int64_t end, int32_t (*reach)[2]);
  // Output rows [begin, end) of image n: grad_offset and grad_mask; input rows [first, last) of image n: grad_input,
  // which holds zeros and is of the computing type (float for half types). reach may be null: all rows are scanned.
  void (*backward)(
      const SdcParams&, ImageView grad_output, ImageView input, ImageView offset, ImageView mask, ImageView grad_input,
      ImageView grad_offset, ImageView grad_mask, int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last,
      const int32_t (*reach)[2]);
};

DANET_DECLARE_KERNELS(SdcKernels, sdc_kernels)

}  // namespace danet
