// The CPU kernels of deform_conv2d (deform_conv.h).
#include "../common/matrix.h"
#include "../sdc/sdc_forward.h"
#include "deform_conv.h"

namespace danet {
namespace {

int64_t packed_size(int64_t C_out, int64_t depth) { return panel_count(C_out) * kPanel * depth; }

void pack(const float* weight, int64_t C_out, int64_t C, int64_t K, float* packed, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t lane = 0; lane < kPanel; ++lane) {
          const int64_t o = panel * kPanel + lane;
          packed[((panel * K + k) * C + c) * kPanel + lane] = o < C_out ? weight[(o * C + c) * K + k] : 0;
        }
}

// Calls body(i, g, source) for the pixels [begin, end) of image n and every block of taps.groups groups, see `for_row`.
template <typename Body>
DANET_INLINE void for_pixels(
    const SdcParams& p, const TapTable<float>& taps, const ImageView& input, const ImageView& offset,
    const ImageView& mask, int64_t n, int64_t begin, int64_t end, const Body& body) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t y = i / p.W_out, x = i - y * p.W_out;
    for (int64_t g = 0; g < p.G; g += taps.groups) {
      const int64_t groups = g + taps.groups <= p.G ? taps.groups : p.G - g;
      body(
          i, g,
          TapInputs<float, float>{
              offset.pixel<float>(n, i) + g * p.offset_group_stride, mask.pixel<float>(n, i) + g * p.mask_group_stride,
              float(sdc_center(p, 0)) + float(y * p.stride[0]), float(sdc_center(p, 1)) + float(x * p.stride[1]),
              groups * p.K, uint32_t(input.pixel_stride), 0});
    }
  }
}

// DeformConvKernels::dense.
void dense(
    const SdcParams& p, int64_t C_out, ImageView input, ImageView offset, ImageView mask, const float* packed,
    const float* bias, ImageView out, int64_t n, int64_t begin, int64_t end, float* samples) {
  TapTable<float> taps(p);
  const CellBounds bounds(p, input, 0, p.H);
  const int64_t group_channels = p.C / p.G, depth = p.K * p.C;
  // Lay out the samples of the pixels as rows, which stay in the cache.
  for_pixels(p, taps, input, offset, mask, n, begin, end, [&](int64_t i, int64_t g, const auto& source) {
    sum_taps(
        p, taps, source, bounds, input.pixel<float>(n, 0) + g * group_channels,
        samples + (i - begin) * depth + g * group_channels, group_channels);
  });
  // Multiply them by every panel of the weight, add the bias, and write back.
  constexpr int L = kLanes<float>;
  for (int64_t panel = 0; panel < panel_count(C_out); ++panel) {
    const int64_t o = panel * kPanel, count = C_out - o;
    float biases[kPanel];
    for (int64_t lane = 0; lane < kPanel; ++lane) biases[lane] = bias != nullptr && lane < count ? bias[o + lane] : 0;
    const F low_bias = load(biases), high_bias = load(biases + L);
    multiply_rows(
        samples, end - begin, depth, packed + panel * kPanel * depth, depth, [](int64_t) {},
        [&](int64_t row, F low, F high) {
          float* to = out.pixel<float>(n, begin + row) + o;
          store_up_to(to, low + low_bias, count);
          store_up_to(to + L, high + high_bias, count - L);
        });
  }
}

// Computes out [groups, group_channels] of the prepared groups, whose cells lie inside the image. Returns whether all
// results are finite. weight [K, C] and bias point to the first channel of the first group.
__attribute__((noinline)) bool gather_weighted(
    const SdcParams& p, const TapTable<float>& taps, int64_t num_taps, const CellBounds& bounds,
    const float* group_image, const float* weight, const float* bias, float* out, int64_t group_channels) {
  constexpr int L = kLanes<float>;
  F zero_or_nan{};  // NaN in lanes in which a result was not finite
  for (int64_t first = 0, channel = 0; first < num_taps; first += p.K, channel += group_channels)
    for_channels<float>(group_channels, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
      constexpr int V = decltype(block)::vectors;
      const CornerPointers<const float> from(group_image + c, bounds);
      F total[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) total[v] = bias != nullptr ? load_channels(bias + channel + c + v * L, count) : F{};
      const float* w = weight + channel + c;
      for (int64_t k = 0; k < p.K; ++k, w += p.C) {
        // Add the four corners times their weights to the sample, and the sample times the weight of the tap.
        const auto weight_of = [&](int corner) __attribute__((always_inline)) {
          return broadcast<float>(taps.weight[corner][first + k]);
        };
        F sample[1][V] = {};
        add_corners<float>(sample, from, taps.cell[first + k], weight_of, count);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) total[v] += sample[0][v] * load_channels(w + v * L, count);
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        zero_or_nan += total[v] * 0.0f;
        store_channels(out + channel + c + v * L, total[v], count);
      }
    });
  return !any<float>(zero_or_nan != zero_or_nan);
}

// DeformConvKernels::depthwise.
void depthwise(
    const SdcParams& p, ImageView input, ImageView offset, ImageView mask, const float* packed, const float* bias,
    ImageView out, int64_t n, int64_t begin, int64_t end, float* samples) {
  TapTable<float> taps(p);
  const CellBounds bounds(p, input, 0, p.H);
  const int64_t group_channels = p.C / p.G;
  for_pixels(p, taps, input, offset, mask, n, begin, end, [&](int64_t i, int64_t g, const auto& source) {
    const int64_t channel = g * group_channels, channels = source.num_taps / p.K * group_channels;
    const float* group_image = input.pixel<float>(n, 0) + channel;
    float* group_out = out.pixel<float>(n, i) + channel;
    const float* group_bias = bias != nullptr ? bias + channel : nullptr;
    // Prepare the taps, gather and sum.
    const bool inside = prepare_taps</*kBackward=*/false>(p, taps, source);
    if (!inside) clamp_cells</*kWeights=*/true>(p, taps, source.num_taps, 0, p.H, source.stride, taps.cell);
    if (gather_weighted(
            p, taps, source.num_taps, bounds, group_image, packed + channel, group_bias, group_out, group_channels))
      return;
    // A result is not finite, perhaps because a clamped cell has read a pixel that the sample does not use: compute the
    // samples with bounds checks, then sum them.
    sum_taps(p, taps, source, bounds, group_image, samples + channel, group_channels);
    for (int64_t c = 0; c < channels; ++c) {
      float total = group_bias != nullptr ? group_bias[c] : 0;
      for (int64_t k = 0; k < p.K; ++k) total += samples[k * p.C + channel + c] * packed[k * p.C + channel + c];
      group_out[c] = total;
    }
  });
}

constexpr DeformConvKernels kDeformConvKernels = {packed_size, pack, panel_count, dense, depthwise};

}  // namespace

const DeformConvKernels& DANET_ISA::deform_conv_kernels(DType) { return kDeformConvKernels; }

}  // namespace danet
