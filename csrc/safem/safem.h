// Fused inference of SaFEM, the Scale-adaptive Feature Enhancement Mechanism: SDC, FFN and channel softmax gate in one
// pass.
//
//   d = relu(depthwise(x) + depthwise_bias)                       3x3, one kernel per channel, zero padding
//   offset, mask = predictor d + predictor_bias                   2*G*9 offsets, then G*9 mask logits, see sdc.h
//   z = sdc(x, offset, mask)                                      3x3, G groups
//   s = softmax over c of (reduce gelu(expand z + expand_bias) + reduce_bias)
//   out[c] = scale * C * s[c] * x[c]                              for one level, or, as ACFA combines two levels,
//   out[c] = scale * C * s[c] * up[c] + weight[n, c] * x[c]
//
// up[n, c, y, x] is channel ((y % 2) * 2 + x % 2) * C + c of pixel (y / 2, x / 2) of a feature map of half the size:
// the output of a 2x2 transposed convolution of stride 2 before its pixels are moved to their places. w_g of SDC is
// folded into expand, and batch norms into the convolutions before them. acfa_weight is the channel weight w_d of ACFA
// (equation 4): sigmoid(reduce gelu(expand mean + expand_bias) + reduce_bias), where mean is that of z over the pixels
// of an image.
#pragma once

#include <cstdint>

#include "../sdc/sdc.h"

namespace danet {

struct SafemParams {
  int64_t N, C, H, W, G;
  double scale;
};

constexpr int64_t kSafemTaps = 9;

namespace {

// The options of SaFEM's SDC: the defaults, a 3x3 window of stride and padding 1 with softmax.
DANET_HOST_DEVICE SdcOptions sdc_options(const SafemParams& p) {
  SdcOptions options;
  options.N = p.N, options.C = p.C, options.H = p.H, options.W = p.W, options.groups = p.G;
  return options;
}
DANET_HOST_DEVICE SdcParams sdc_params(const SafemParams& p) { return SdcParams(sdc_options(p), SdcLayout::kSdc); }

}  // namespace

// The image of pairs of horizontal neighbours (safem_pairs.h), which some kernels read instead of the image. The values
// of image n were divided by 2^exponents[n].
struct PairsView {
  const uint32_t* data;
  const int* exponents;
};

// The contiguous weights before packing: [C, 9], [C], [27G, C], [27G], [2C, C], [2C], [C, 2C], [C].
struct SafemWeights {
  const float *depthwise, *depthwise_bias, *predictor, *predictor_bias, *expand, *expand_bias, *reduce, *reduce_bias;
};

// The CPU kernels for one dtype of the images. Biases are float32 for every dtype. For bfloat16, the
// depthwise weights are also stored as pairs (safem_pairs.h). In
// `prepared`, the matrices of the 1x1 convolutions have the dtype of the images.
struct SafemKernels {
  // The size of `prepared` in floats.
  int64_t (*prepared_size)(const SafemParams&);
  // Packs the weights for the instruction set.
  void (*prepare)(const SafemParams&, const SafemWeights&, float* prepared);
  // The size, in elements, of the image of pairs; 0 if the kernels do not need one.
  int64_t (*pairs_size)(const SafemParams&);
  // Writes the rows [begin, end) of image n to the image of pairs, divided by 2^exponent. Returns the largest magnitude
  // of the finite values of these rows.
  float (*write_pair_image)(
      const SafemParams&, ImageView input, int64_t n, int64_t begin, int64_t end, int exponent, uint32_t* pairs);
  // The exponent of the scale for image n, whose values have this largest magnitude: 0 unless it is very large or very
  // small.
  int (*pair_exponent)(const SafemParams&, ImageView input, int64_t n, float largest);
  // The largest number of pixels that `forward` and `sum` should get at once.
  int64_t (*block_pixels)(const SafemParams&);
  // The scratch memory for this number of pixels, in bytes.
  int64_t (*scratch_size)(const SafemParams&, int64_t pixels);
  // Computes pixels [begin, end) of image n. up.data may be null; weight [C] belongs to the image.
  void (*forward)(
      const SafemParams&, ImageView input, const PairsView& pairs, const float* prepared, ImageView up,
      const float* weight, ImageView out, int64_t n, int64_t begin, int64_t end, char* scratch);
  // Computes the sum of z over those pixels: sum [C].
  void (*sum)(
      const SafemParams&, ImageView input, const PairsView& pairs, const float* prepared, float* sum, int64_t n,
      int64_t begin, int64_t end, char* scratch);
  // Computes acfa_weight, weight [C], from the mean [C] of z. The scratch memory is that of one pixel.
  void (*channel_weight)(const SafemParams&, const float* mean, const float* prepared, float* weight, char* scratch);
};

// For float32: the argument must be DType::kFloat.
DANET_DECLARE_KERNELS(SafemKernels, safem_kernels)
// For bfloat16, with AMX or AVX512_BF16.
DANET_DECLARE_TILE_KERNELS(SafemKernels, safem_tile_kernels)

}  // namespace danet
