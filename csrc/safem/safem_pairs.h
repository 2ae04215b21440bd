// How SaFEM reads an image in bfloat16: from a copy, called the image of pairs. Each 32-bit element of it holds two
// values of one channel: that of a pixel and that of its right neighbour. Around the image there is a border of zeros,
// which the samples outside of the image read, so that no tap needs a check of its position.
//
// One instruction multiplies a vector of pairs by pairs of weights and adds the products to sums (pairs.h). Both upper
// corners of a bilinear sample are then one load and one instruction, and so are the lower ones. The depth-wise
// convolution needs two instructions per row of its window. Reading the image itself needs about four times as many
// instructions, because each of its values must be converted first. The copy is as large as an image in float32.
//
// float16 values range from 6e-8 to 65504. An image of mostly very large or very small values is therefore divided by a
// power of two. Single values that are still too large become infinite; sums that are not finite are computed again
// in float32 from the image itself. The weights and the sums are rounded
// to the type of the pairs. The error of a sample is about as large as the rounding error of the result.
#pragma once

#include <algorithm>
#include <cmath>

#include "../common/pairs.h"
#include "safem_block.h"

namespace danet {
namespace {

// Loads the bits of the first `count` elements of a vector V of 16-bit or 32-bit integers, or of all if count is 0.
template <typename V, typename E>
DANET_INLINE V load_bits(const E* p, int count) {
  static_assert(sizeof(V) == L * sizeof(E), "the vector must have as many lanes as a vector of floats");
  if (count == 0) return bits_as<V>(p);
#if defined(__AVX512F__)
  const __mmask16 first = __mmask16((1u << count) - 1);
  if constexpr (sizeof(E) == 4)
    return (V)_mm512_maskz_loadu_epi32(first, p);
  else
    return (V)_mm256_maskz_loadu_epi16(first, p);
#else
  V v{};
  std::memcpy(&v, p, size_t(count) * sizeof *p);
  return v;
#endif
}
DANET_INLINE U32 load_pairs(const uint32_t* p, int count) { return load_bits<U32>(p, count); }
DANET_INLINE void store_pairs(uint32_t* p, U32 v, int count) {
  std::memcpy(p, &v, count == 0 ? sizeof v : size_t(count) * sizeof *p);
}

// The larger one of `largest` and the magnitude of these values in every lane; infinity and NaN count as zero.
DANET_INLINE U16 larger_finite(U16 largest, U16 bits) {
  const U16 magnitude = bits & 0x7fff;
#if defined(__AVX512F__)
  const __mmask16 is_finite = _mm256_cmplt_epu16_mask((__m256i)magnitude, _mm256_set1_epi16(0x7f80));
  return (U16)_mm256_mask_max_epu16((__m256i)largest, is_finite, (__m256i)largest, (__m256i)magnitude);
#else
  const U16 finite = magnitude < 0x7f80 ? magnitude : U16{};
  return finite > largest ? finite : largest;
#endif
}

// The image of pairs, which has rows -2 to H + 1 and columns -2 to W. The 2x2 pixels around a sample (its cell) start
// in rows -2 to H and columns -2 to W, because prepare_group (safem_taps.h) clamps the coordinates.
struct PairImage {
  static constexpr int64_t kBorder = 2;
  int64_t row_stride, image_stride;  // in elements
  // Numbers of pixels in the order of memory, exact in float32 up to 2^24: the pixels of a row, pixel (0, 0), and the
  // last pixel that is the top left one of a cell.
  float row_pixels, first_pixel;
  uint32_t last_cell;

  explicit PairImage(const SafemParams& p)
      : row_stride((p.W + 3) * p.C), image_stride((p.H + 4) * row_stride), row_pixels(float(p.W + 3)),
        first_pixel(float(kBorder * (p.W + 3) + kBorder)), last_cell(uint32_t((p.H + 3) * (p.W + 3) - 1)) {}
  // The element of the first channel of pixel (y, x).
  int64_t pixel(const SafemParams& p, int64_t y, int64_t x) const {
    return (y + kBorder) * row_stride + (x + kBorder) * p.C;
  }
};

// Writes the pairs of the rows [begin, end) of image n, divided by 2^exponent, and the border beside, above and below
// them. Returns the largest magnitude of the finite values.
float write_pair_image(
    const SafemParams& p, ImageView input, int64_t n, int64_t begin, int64_t end, int exponent, uint32_t* pairs) {
  const PairImage image(p);
  uint32_t* const first = pairs + n * image.image_stride;
  const float factor = std::ldexp(1.0f, -exponent);
  U16 largest{};
  const auto clear = [&](uint32_t* to, int64_t count) { std::memset(to, 0, size_t(count) * sizeof *to); };
  for (int64_t y = begin; y < end; ++y) {
    if (y == 0) clear(first, PairImage::kBorder * image.row_stride);
    if (y == p.H - 1) clear(first + (p.H + 2) * image.row_stride, 2 * image.row_stride);
    uint32_t* to = first + (y + PairImage::kBorder) * image.row_stride;
    clear(to, p.C);
    to += p.C;
    for_channels<float>(p.C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
      constexpr int V = decltype(block)::vectors;
      uint32_t* pair = to + c;
      U16 left[V] = {};
      for (int64_t x = 0; x <= p.W; ++x, pair += p.C) {
        const BFloat16* pixel = x < p.W ? input.pixel<BFloat16>(n, y * p.W + x) + c : nullptr;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const U16 bits = pixel == nullptr ? U16{} : load_bits<U16>(pixel + v * L, count);
          largest = larger_finite(largest, bits);
          const U16 right = bfloat16_to_pair_type(bits, factor);
          store_pairs(pair + v * L, join_halves(left[v], right), count);
          left[v] = right;
        }
      }
    });
    clear(to + (p.W + 1) * p.C, p.C);
  }
  BFloat16 result{};
  for (int i = 0; i < L; ++i) result.bits = largest[i] > result.bits ? largest[i] : result.bits;
  return to_compute(result);
}

// The exponent of the scale of image n, whose values have this largest magnitude: 0 if they fit the type of the pairs.
// Else the mean exponent of the values decides, not the largest one, which may be a single pixel.
int pair_exponent(const SafemParams& p, ImageView input, int64_t n, float largest) {
  if (fits_pair_type(largest)) return 0;
  int64_t sum = 0, count = 0;
  for (int64_t i = 0; i < p.H * p.W; ++i)
    for (int64_t c = 0; c < p.C; ++c) {
      const float value = to_compute(input.pixel<BFloat16>(n, i)[c]);
      if (value == 0 || !std::isfinite(value)) continue;
      sum += std::ilogb(value);
      ++count;
    }
  return count == 0 ? 0 : std::clamp(int(sum / count) - 2, -126, 126);
}

// The depth-wise weights: for each row of the window, two pairs per channel. The first pair of weights belongs to the
// pixels on the left and in the middle, the second one to those in the middle and on the right, with a zero for the
// middle. A pair beyond the window must not be read: a NaN there, times zero, would be NaN. The pairs of a channel are
// divided by a power of two, its scale. The scales follow after the pairs, then the weights themselves [C, 9].
constexpr int64_t kDepthwisePairs = 6;
constexpr int64_t padded_channels(int64_t C) { return (C + L - 1) / L * L; }
constexpr int64_t depthwise_scales(int64_t C) { return kDepthwisePairs * padded_channels(C); }
constexpr int64_t depthwise_weights(int64_t C) { return depthwise_scales(C) + padded_channels(C); }
// The size differs between the types of pairs, so that weights that were prepared for the other one are refused.
constexpr int64_t depthwise_size(int64_t C) { return depthwise_weights(C) + kSafemTaps * C + DANET_PAIRS_ARE_FLOAT16; }

void prepare_depthwise(const float* weight, int64_t C, float* prepared) {
  std::memcpy(prepared + depthwise_weights(C), weight, size_t(kSafemTaps * C) * sizeof(float));
  for (int64_t c = 0; c < C; ++c, weight += kSafemTaps) {
    float largest = 0;
    for (int64_t k = 0; k < kSafemTaps; ++k)
      if (std::isfinite(weight[k])) largest = std::max(largest, std::abs(weight[k]));
    const int exponent = weight_exponent(largest);
    prepared[depthwise_scales(C) + c] = std::ldexp(1.0f, exponent);
    const auto value = [&](int64_t k) { return uint32_t(round_to_pair_type(std::ldexp(weight[k], -exponent))); };
    for (int64_t row = 0; row < 3; ++row)
      for (int64_t i = 0; i < 2; ++i) {
        const uint32_t pair = (i == 0 ? value(3 * row) : 0) | value(3 * row + 1 + i) << 16;
        std::memcpy(prepared + (2 * row + i) * padded_channels(C) + c, &pair, sizeof pair);
      }
  }
}

// features [count, stride] = relu(depthwise(x) + bias) of `count` <= kBlockRows successive pixels of an image, from
// pixel `first` on. pairs: the first element of the image. scale: the factor that undoes the scaling of the image.
// Returns whether all sums are finite.
inline bool convolve_depthwise(
    const SafemParams& p, const PairImage& image, const uint32_t* pairs, float scale, int64_t first, int64_t count,
    const float* weight, const float* bias, BFloat16* features, int64_t stride) {
  const uint32_t* pixels[kBlockRows];
  int64_t y = first / p.W, x = first % p.W;
  for (int64_t i = 0; i < count; ++i) {
    pixels[i] = pairs + image.pixel(p, y, x);
    if (++x == p.W) x = 0, ++y;
  }
  const uint32_t* const weights = reinterpret_cast<const uint32_t*>(weight);
  const int64_t C_pad = padded_channels(p.C);
  F zero_or_nan{};
  for_vectors_of<float>(p.C, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    U32 w[kDepthwisePairs];
#pragma GCC unroll 6
    for (int64_t i = 0; i < kDepthwisePairs; ++i) w[i] = load_pairs(weights + i * C_pad + c, 0);
    const F b = load(bias + c), factor = load(weight + depthwise_scales(p.C) + c) * scale;
    for (int64_t i = 0; i < count; ++i) {
      // Two chains of additions, to hide their latency
      PairSums sums[2];
#pragma GCC unroll 3
      for (int64_t row = 0; row < 3; ++row)
#pragma GCC unroll 2
        for (int64_t k = 0; k < 2; ++k) {
          const uint32_t* pair = pixels[i] + (row - 1) * image.row_stride + (k - 1) * p.C + c;
          sums[k].add_products(load_pairs(pair, lanes), w[2 * row + k]);
        }
      sums[0].add(sums[1]);
      const F sum = sums[0].sum_halves() * factor + b;
      zero_or_nan += sum * 0.0f;
      store(features + i * stride + c, clamp_min(sum, 0.0f));
    }
  });
  return !any<float>(zero_or_nan != zero_or_nan);
}

// The same in float32 from the image itself, for values that are not finite, or too large for float16.
__attribute__((noinline)) void convolve_depthwise_in_float32(
    const SafemParams& p, ImageView input, int64_t n, int64_t first, int64_t count, const float* weight,
    const float* bias, BFloat16* features, int64_t stride) {
  weight += depthwise_weights(p.C);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < p.C; ++c) {
      float sum = bias[c];
      for (int64_t k = 0; k < kSafemTaps; ++k) {
        const int64_t y = (first + i) / p.W + k / 3 - 1, x = (first + i) % p.W + k % 3 - 1;
        if (y < 0 || y >= p.H || x < 0 || x >= p.W) continue;
        sum += weight[c * kSafemTaps + k] * to_compute(input.pixel<BFloat16>(n, y * p.W + x)[c]);
      }
      features[i * stride + c] = from_compute<BFloat16>(sum < 0 ? 0 : sum);
    }
}

}  // namespace
}  // namespace danet
