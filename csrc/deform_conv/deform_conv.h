// deform_conv2d on the CPU in float32: the samples of SDC (../sdc/sdc.h), times the mask, are multiplied by a weight.
//
//   out[n, o, y, x] = bias[o] + sum_{c, k} weight[o, c, k] * m[n, g, k, y, x] * input[n, c, Y, X]     dense
//   out[n, c, y, x] = bias[c] + sum_k weight[c, k] * m[n, g, k, y, x] * input[n, c, Y, X]             depth-wise
//
// A grouped layer is a dense layer for each of its weight groups: C / groups input channels give C_out / groups output
// channels. Other dtypes and devices use the operator deform_im2col and torch's matrix product.
#pragma once

#include <cstdint>

#include "../common/kernels.h"
#include "../sdc/sdc.h"

namespace danet {

struct DeformConvKernels {
  // Elements of the packed weight of a layer with C_out output channels and `depth` = K * C products per output.
  int64_t (*packed_size)(int64_t C_out, int64_t depth);
  // Packs the columns [begin, end) of panels of the weight [C_out, C, K]: panel, tap, channel, output channel.
  void (*pack)(const float* weight, int64_t C_out, int64_t C, int64_t K, float* packed, int64_t begin, int64_t end);
  int64_t (*panels)(int64_t C_out);
  // Computes the pixels [begin, end) of image n of out. packed: the packed weights of all weight groups, one after the
  // other; [K, C] if depth-wise. bias may be null. samples: scratch memory for (end - begin) * K * C values; with
  // several groups for (end - begin) * K * (C + C / groups) values; depth-wise for K * C values.
  void (*dense)(
      const SdcParams&, int64_t C_out, int64_t groups, ImageView input, ImageView offset, ImageView mask,
      const float* packed, const float* bias, ImageView out, int64_t n, int64_t begin, int64_t end, float* samples);
  // The same for one weight group. Reads the weight [C_out, C, K] in place: for few pixels, packing it takes longer
  // than transposing the samples. samples: scratch memory for few_pixels_scratch(C_out, depth, end - begin) values.
  int64_t (*few_pixels_scratch)(int64_t C_out, int64_t depth, int64_t pixels);
  void (*few_pixels)(
      const SdcParams&, int64_t C_out, ImageView input, ImageView offset, ImageView mask, const float* weight,
      const float* bias, ImageView out, int64_t n, int64_t begin, int64_t end, float* samples);
  void (*depthwise)(
      const SdcParams&, ImageView input, ImageView offset, ImageView mask, const float* packed, const float* bias,
      ImageView out, int64_t n, int64_t begin, int64_t end, float* samples);
};

DANET_DECLARE_KERNELS(DeformConvKernels, deform_conv_kernels)

}  // namespace danet
