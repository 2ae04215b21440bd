// SDC, the sampling of DANet's Separable Deformable Convolution: every output pixel of every group of channels samples
// its own K positions of the input. The 1x1 convolution that follows in the paper is not part of this operator.
//
//   out[n, c, y, x] = sum_{k < K} m[n, g, k, y, x] * input[n, c, Y, X],   g = c / (C / G)
//   Y = y*s_y - p_y + h_y + scale * (k_y*d_y - h_y + offset[n, g, k, 0, y, x])
//   X = x*s_x - p_x + h_x + scale * (k_x*d_x - h_x + offset[n, g, k, 1, y, x])
//
//   0 <= n < N, 0 <= c < C, 0 <= g < G, 0 <= y < H_out, 0 <= x < W_out
//
// with stride s, padding p, dilation d, and h = d * (kernel_size - 1) / 2 (integer division), the center of the window.
// m is the softmax of mask over the K taps of a group, or mask itself. Tap k is (k_y, k_x) in row-major order, without
// the middle tap if remove_center. DCNv3 and DCNv4 count taps in column-major order and store X before Y in each pair
// of offsets.
//
// In memory, all tensors are channels-last: the channels of offset are [G, K, 2], and those of mask [G, K].
//
// input[Y, X] is interpolated bilinearly between four pixels, the corners of its cell: rows floor(Y) and floor(Y) + 1,
// columns floor(X) and floor(X) + 1. It is zero outside the image. A sample with a NaN coordinate is NaN in the forward
// pass and zero in the backward pass; a sample with an infinite coordinate is zero. For both, the gradient of the
// offset is zero.
//
// The gradient of an offset is the right-sided derivative. At Y = -1 exactly, it is scale * m times the value that is
// interpolated in the first row, and likewise for X (as in torchvision); DCNv3 and DCNv4 instead ignore samples with Y
// <= -1 or X <= -1 altogether.
//
// The files of this folder:
//   sdc_schema.h, sdc_torch.h, sdc_arguments.h       all devices: options in the schemas; operators that torch calls
//   sdc_check.h                                      all devices: the check of sizes and options
//   sdc_cpu.cpp, sdc_parallel.h, sdc_image.h         CPU: limits, memory, threads
//   sdc_kernels.cpp, sdc_{taps,forward,backward}.h   CPU: the kernels, compiled once per instruction set
//   sdc_cuda.cu                                      CUDA: limits, memory, launches
//   sdc_forward_plan.cuh                             CUDA: what the host decides for the forward kernel
//   sdc_{taps,forward,im2col,backward}.cuh           CUDA: the kernels
//   sdc_tap_table.cuh                                CUDA: the taps of the forward kernel in shared memory
#pragma once

#include <cstdint>

#include "../../include/danet/sdc_options.h"
#include "../common/kernels.h"

namespace danet {

// The layout of offsets and mask. kSdc and kDcnv3: two tensors. kDcnv4: one tensor, in which the 2 K offsets of a group
// come before its K mask values. kDcnv3 and kDcnv4 have DCN's order of taps and pairs (see the top of this file).
// kColumns: as kSdc, but the samples of a pixel, times m, are not summed over the taps: out is [N, K * C, H_out,
// W_out].
enum class SdcLayout { kSdc, kDcnv3, kDcnv4, kColumns };

// The options of a call, checked by check_sdc (sdc_check.h), and the sizes and strides derived from them.
struct SdcParams : SdcOptions {
  int64_t G, K, H_out, W_out;
  bool x_first;  // the order of taps and pairs of DCNv3 and DCNv4
  // Elements from one group to the next: 2 K and K, or 3 K in DCNv4's joint tensor.
  int64_t offset_group_stride, mask_group_stride;
  // Channels of out, and how many of them lie between a channel of one tap and that of the next: 0 in a sum over taps.
  int64_t C_out, tap_stride;

  DANET_HOST_DEVICE SdcParams(const SdcOptions& options, SdcLayout layout)
      : SdcOptions(options), G(groups), K(kernel_size[0] * kernel_size[1] - (remove_center ? 1 : 0)),
        H_out(output_size(H, 0)), W_out(output_size(W, 1)),
        x_first(layout == SdcLayout::kDcnv3 || layout == SdcLayout::kDcnv4),
        offset_group_stride(layout == SdcLayout::kDcnv4 ? 3 * K : 2 * K),
        mask_group_stride(layout == SdcLayout::kDcnv4 ? 3 * K : K), C_out(layout == SdcLayout::kColumns ? K * C : C),
        tap_stride(layout == SdcLayout::kColumns ? C : 0) {}

 private:
  DANET_HOST_DEVICE int64_t output_size(int64_t size, int axis) const {
    return (size + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) / stride[axis] + 1;
  }
};

namespace {

// Parts of the coordinates that a tap samples (see the formula at the top):
//   Y = sdc_center(p, 0) + y * stride + sdc_tap_distance(p, 0, k) + offset_scale * offset
// X likewise, with axis 1 and x. sdc_center is the center of the window of output pixel (0, 0). sdc_tap_distance is the
// distance of tap k from the center of its window, times offset_scale.
DANET_HOST_DEVICE int64_t sdc_center(const SdcParams& p, int axis) {
  return p.dilation[axis] * (p.kernel_size[axis] - 1) / 2 - p.padding[axis];
}
DANET_HOST_DEVICE double sdc_tap_distance(const SdcParams& p, int axis, int64_t k) {
  if (p.remove_center && k >= p.K / 2) ++k;
  const int inner_axis = p.x_first ? 0 : 1;  // the axis on which consecutive taps are neighbors
  const int64_t inner_size = p.kernel_size[inner_axis], k_axis = axis == inner_axis ? k % inner_size : k / inner_size;
  return p.offset_scale * double(k_axis * p.dilation[axis] - p.dilation[axis] * (p.kernel_size[axis] - 1) / 2);
}

// The bilinear weights of a cell's corners (top left, top right, bottom left, bottom right), times m. (y, x) is the
// position in the cell, from 0 to 1.
template <typename V>
DANET_HOST_DEVICE void bilinear(V y, V x, V m, V (&weight)[4]) {
  V bottom = y * m, top = m - bottom;
  weight[1] = top * x;
  weight[0] = top - weight[1];
  weight[3] = bottom * x;
  weight[2] = bottom - weight[3];
}

// The derivatives of the loss with respect to m, Y and X. dot[corner] = sum_c grad_output[c] * input[c] at that corner.
template <typename V>
DANET_HOST_DEVICE void bilinear_gradients(V y, V x, V m, const V (&dot)[4], V& grad_m, V& grad_y, V& grad_x) {
  V top = dot[0] + x * (dot[1] - dot[0]), bottom = dot[2] + x * (dot[3] - dot[2]);
  V left = dot[0] + y * (dot[2] - dot[0]), right = dot[1] + y * (dot[3] - dot[1]);
  grad_m = top + y * (bottom - top);
  grad_y = m * (bottom - top);
  grad_x = m * (right - left);
}

}  // namespace

// The largest K that the kernels support. The Python reference computes larger windows.
constexpr int64_t kMaxTaps = 256;

// The CPU kernels of one dtype. A row is one output row of one image: row = n * H_out + y.
struct SdcKernels {
  // Computes rows [begin, end) of out.
  void (*forward)(
      const SdcParams&, ImageView input, ImageView offset, ImageView mask, ImageView out, int64_t begin, int64_t end);
  // For each output row in [begin, end): finds the rows between the smallest and the largest Y of its samples (samples
  // outside the image count too), clips this range to the image, and writes its first and last row to row_ranges[row].
  // The range contains all input rows that the output row reads. If the range is empty, its first row is greater than
  // its last row.
  void (*find_row_ranges)(const SdcParams&, ImageView offset, int64_t begin, int64_t end, int32_t (*row_ranges)[2]);
  // Computes grad_offset and grad_mask of the output rows y in [begin, end) of image n; here y counts from 0 in each
  // image. Adds the contributions of all output rows of the image to rows [first, last) of grad_input, which must hold
  // zeros and has the compute dtype (float32 for half dtypes). row_ranges lets it skip output rows that do not sample
  // these rows; if it is null, it visits all of them.
  void (*backward)(
      const SdcParams&, ImageView grad_output, ImageView input, ImageView offset, ImageView mask, ImageView grad_input,
      ImageView grad_offset, ImageView grad_mask, int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last,
      const int32_t (*row_ranges)[2]);
};

DANET_DECLARE_KERNELS(SdcKernels, sdc_kernels)

}  // namespace danet
