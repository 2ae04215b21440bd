// How SaFEM reads an image in bfloat16: from a copy, called the image of pairs. Each 32-bit element of it holds two values
// of one channel: that of a pixel and that of its right neighbour. Around the image there is a border of zeros, which
// the samples outside of the image read, so that no tap needs a check of its position.
//
// One instruction of AVX512_BF16 multiplies such pairs by pairs of weights and adds the products to float32 sums. Both
// upper corners of a bilinear sample are then one load and one instruction, and so are the lower ones. The depth-wise
// convolution needs two instructions per row of its window. Reading the image itself needs about four times as many
// instructions, because each of its values must be converted to float32 first. The copy is as large as an image in
// float32. The weights of the corners are rounded to bfloat16. The error of a sample is then about as large as the
// rounding error of the result.
#pragma once

#include "../common/bfloat16_pairs.h"
#include "safem_block.h"

namespace danet {
namespace {

// Loads the first `count` elements of a vector, or all of them if count is 0.
DANET_INLINE U32 load_pairs(const uint32_t* p, int count) {
  if (count == 0) return bits_as<U32>(p);
#if defined(__AVX512F__)
  return (U32)_mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), p);
#else
  U32 v{};
  std::memcpy(&v, p, size_t(count) * sizeof *p);
  return v;
#endif
}

// The image of pairs, which has rows -2 to H + 1 and columns -2 to W. The 2x2 pixels around a sample (its cell) start in
// rows -2 to H and columns -2 to W, because prepare_group (safem_taps.h) clamps the coordinates.
struct PairImage {
  static constexpr int64_t kBorder = 2;
  int64_t row_stride, image_stride;  // in elements

  explicit PairImage(const SafemParams& p) : row_stride((p.W + 3) * p.C), image_stride((p.H + 4) * row_stride) {}
  // The element of the first channel of pixel (y, x).
  int64_t pixel(const SafemParams& p, int64_t y, int64_t x) const {
    return (y + kBorder) * row_stride + (x + kBorder) * p.C;
  }
};

// Writes the pairs of rows [begin, end) of all N * H rows, and the border beside, above and below them.
void make_pairs(const SafemParams& p, ImageView input, int64_t begin, int64_t end, uint32_t* pairs) {
  const PairImage image(p);
  const auto clear = [&](uint32_t* to, int64_t count) { std::memset(to, 0, size_t(count) * sizeof *to); };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.H, y = row % p.H;
    uint32_t* const first = pairs + n * image.image_stride;
    if (y == 0) clear(first, PairImage::kBorder * image.row_stride);
    if (y == p.H - 1) clear(first + (p.H + 2) * image.row_stride, 2 * image.row_stride);
    uint32_t* to = first + (y + PairImage::kBorder) * image.row_stride;
    clear(to, p.C);
    to += p.C;
    for (int64_t x = -1; x < p.W; ++x, to += p.C) {
      const BFloat16* pixel = x >= 0 ? input.pixel<BFloat16>(n, y * p.W + x) : nullptr;
      const BFloat16* next = x + 1 < p.W ? input.pixel<BFloat16>(n, y * p.W + x + 1) : nullptr;
      int64_t c = 0;
      for (; c + L <= p.C; c += L) {
        const U32 both = pair_bfloat16(
            pixel == nullptr ? U16{} : bits_as<U16>(pixel + c), next == nullptr ? U16{} : bits_as<U16>(next + c));
        std::memcpy(to + c, &both, sizeof both);
      }
      for (; c < p.C; ++c)
        to[c] = (pixel == nullptr ? 0 : pixel[c].bits) | (next == nullptr ? 0 : uint32_t(next[c].bits) << 16);
    }
    clear(to, p.C);
  }
}

// The depth-wise weights: for each row of the window, two pairs per channel. The first pair of weights belongs to the
// pixels on the left and in the middle, the second one to those in the middle and on the right, with a zero for the
// middle. A pair beyond the window must not be read: a NaN there, times zero, would be NaN.
constexpr int64_t kDepthwisePairs = 6;
constexpr int64_t padded_channels(int64_t C) { return (C + L - 1) / L * L; }

void prepare_depthwise(const float* weight, int64_t C, float* prepared) {
  for (int64_t c = 0; c < C; ++c)
    for (int64_t row = 0; row < 3; ++row)
      for (int64_t i = 0; i < 2; ++i) {
        const float* w = weight + c * kSafemTaps + row * 3;
        const uint32_t low = i == 0 ? from_compute<BFloat16>(w[0]).bits : 0;
        const uint32_t pair = low | uint32_t(from_compute<BFloat16>(w[1 + i]).bits) << 16;
        std::memcpy(prepared + (2 * row + i) * padded_channels(C) + c, &pair, sizeof pair);
      }
}

// out [C] = relu(depthwise(x) + bias) of one pixel. `pairs` points to the pixel in the image of pairs.
DANET_INLINE void depthwise_relu(
    const SafemParams& p, const uint32_t* pairs, int64_t row_stride, const float* weight, const float* bias,
    BFloat16* out) {
  const uint32_t* const weights = reinterpret_cast<const uint32_t*>(weight);
  const int64_t C_pad = padded_channels(p.C);
  for_vectors_of<float>(p.C, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    // Two chains of additions, to hide their latency
    F sum[2] = {load(bias + c), F{}};
#pragma GCC unroll 3
    for (int64_t row = 0; row < 3; ++row)
#pragma GCC unroll 2
      for (int64_t i = 0; i < 2; ++i) {
        const uint32_t* pixel = pairs + (row - 1) * row_stride + (i - 1) * p.C;
        sum[i] =
            add_pair_products(sum[i], load_pairs(pixel + c, lanes), load_pairs(weights + (2 * row + i) * C_pad + c, 0));
      }
    store(out + c, clamp_min(sum[0] + sum[1], 0.0f));
  });
}

}  // namespace
}  // namespace danet
