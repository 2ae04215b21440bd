// The CPU kernels of deform_conv2d (deform_conv.h).
#include "../common/matrix.h"
#include "../common/transpose.h"
#include "../common/vec_math.h"
#include "../sdc/sdc_forward.h"
#include "deform_conv.h"

namespace danet {
namespace {

int64_t packed_size(int64_t C_out, int64_t depth) { return panel_count(C_out) * kPanel * depth; }

// Copies kPanel columns x kPackDepth rows of the transposed weight [C_out, depth], zero where there is none.
constexpr int64_t kPackDepth = 16;
DANET_INLINE void transpose_block(
    const float* weight, int64_t columns, int64_t depth, int64_t count, float (&block)[kPackDepth][kPanel]) {
#if defined(__AVX512F__)
  const __mmask16 mask = __mmask16(count >= kPackDepth ? 0xffff : (1 << count) - 1);
  for (int64_t half = 0; half < kPanel; half += 16) {
    __m512i row[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      row[i] = _mm512_maskz_loadu_epi32(half + i < columns ? mask : __mmask16(0), weight + (half + i) * depth);
    transpose_16(row);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(&block[i][half], row[i]);
  }
#else
  for (int64_t lane = 0; lane < kPanel; ++lane)
    for (int64_t i = 0; i < kPackDepth; ++i)
      block[i][lane] = lane < columns && i < count ? weight[lane * depth + i] : 0;
#endif
}

void pack(const float* weight, int64_t C_out, int64_t C, int64_t K, float* packed, int64_t begin, int64_t end) {
  const int64_t depth = C * K;
  alignas(64) float block[kPackDepth][kPanel];
  for (int64_t panel = begin; panel < end; ++panel) {
    float* to = packed + panel * depth * kPanel;
    for (int64_t first = 0, c = 0, k = 0; first < depth; first += kPackDepth) {
      const int64_t count = depth - first < kPackDepth ? depth - first : kPackDepth;
      transpose_block(weight + panel * kPanel * depth + first, C_out - panel * kPanel, depth, count, block);
      // Store by tap, then by channel, as the samples are laid out.
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to + (k * C + c) * kPanel, block[i], sizeof block[i]);
        if (++k == K) k = 0, ++c;
      }
    }
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

// Lays out the samples of the pixels [begin, end) as rows [K, C], which stay in the cache.
void sample_rows(
    const SdcParams& p, ImageView input, ImageView offset, ImageView mask, int64_t n, int64_t begin, int64_t end,
    float* rows) {
  TapTable<float> taps(p);
  const CellBounds bounds(p, input, 0, p.H);
  const int64_t group_channels = p.C / p.G, depth = p.K * p.C;
  for_pixels(p, taps, input, offset, mask, n, begin, end, [&](int64_t i, int64_t g, const auto& source) {
    sum_taps(
        p, taps, source, bounds, input.pixel<float>(n, 0) + g * group_channels,
        rows + (i - begin) * depth + g * group_channels, group_channels);
  });
}

// The depth of the products that are added up in registers: kPanel columns of one factor with this depth, and kMaxRows
// rows of the other one, fit into a first-level cache of 32 KiB.
constexpr int64_t kPartDepth = 192;

// Calls body(part, part_depth) for the parts of a depth.
template <typename Body>
DANET_INLINE void for_parts(int64_t depth, const Body& body) {
  for (int64_t part = 0; part < depth; part += kPartDepth)
    body(part, depth - part < kPartDepth ? depth - part : kPartDepth);
}

// Multiplies rows of samples [count, depth] by the packed weight, and adds the bias, which may be null. Writes channels
// [first_channel, first_channel + C_out) of the pixels [begin, begin + count) of image n of out.
void multiply_samples(
    const float* samples, int64_t count, int64_t depth, const float* packed, int64_t C_out, const float* bias,
    const ImageView& out, int64_t n, int64_t begin, int64_t first_channel) {
  constexpr int L = kLanes<float>;
  // A part of a panel of the weight stays in the first-level cache for all pixels. The first part adds the bias, and
  // every further one the sum of the previous parts.
  for_parts(depth, [&](int64_t part, int64_t part_depth) __attribute__((always_inline)) {
    for (int64_t panel = 0; panel < panel_count(C_out); ++panel) {
      const int64_t o = panel * kPanel, channels = C_out - o;
      F low_bias{}, high_bias{};
      if (bias != nullptr && part == 0) {
        low_bias = load_up_to(bias + o, channels);
        high_bias = load_up_to(bias + o + L, channels - L);
      }
      multiply_rows(
          samples + part, count, depth, packed + (panel * depth + part) * kPanel, part_depth, [](int64_t) {},
          [&](int64_t row, F low, F high) {
            float* to = out.pixel<float>(n, begin + row) + first_channel + o;
            const F low_sum = part == 0 ? low_bias : load_up_to(to, channels);
            const F high_sum = part == 0 ? high_bias : load_up_to(to + L, channels - L);
            store_up_to(to, low_sum + low, channels);
            store_up_to(to + L, high_sum + high, channels - L);
          });
    }
  });
}

// DeformConvKernels::dense.
void dense(
    const SdcParams& p, int64_t C_out, int64_t groups, ImageView input, ImageView offset, ImageView mask,
    const float* packed, const float* bias, ImageView out, int64_t n, int64_t begin, int64_t end, float* samples) {
  const int64_t count = end - begin, depth = p.K * p.C;
  sample_rows(p, input, offset, mask, n, begin, end, samples);
  if (groups == 1) {
    multiply_samples(samples, count, depth, packed, C_out, bias, out, n, begin, 0);
    return;
  }
  const int64_t channels = p.C / groups, group_depth = p.K * channels, group_out = C_out / groups;
  float* group_samples = samples + count * depth;
  for (int64_t group = 0; group < groups; ++group) {
    // Copy the channels of the group, because the product takes rows without gaps.
    for (int64_t row = 0; row < count * p.K; ++row)
      std::memcpy(
          group_samples + row * channels, samples + row * p.C + group * channels, size_t(channels) * sizeof(float));
    multiply_samples(
        group_samples, count, group_depth, packed + group * packed_size(group_out, group_depth), group_out,
        bias != nullptr ? bias + group * group_out : nullptr, out, n, begin, group * group_out);
  }
}

// DeformConvKernels::few_pixels_scratch: rows and columns of samples, and sums, see below.
int64_t few_pixels_scratch(int64_t C_out, int64_t depth, int64_t pixels) {
  return pixels * depth + panel_count(pixels) * kPanel * (depth + C_out);
}

// DeformConvKernels::few_pixels.
void few_pixels(
    const SdcParams& p, int64_t C_out, ImageView input, ImageView offset, ImageView mask, const float* weight,
    const float* bias, ImageView out, int64_t n, int64_t begin, int64_t end, float* samples) {
  constexpr int L = kLanes<float>;
  const int64_t depth = p.K * p.C, count = end - begin;
  float* columns = samples + count * depth;
  float* sums = columns + panel_count(count) * kPanel * depth;
  // Transpose the samples to panels of pixels, in the order [C, K] of the weight.
  sample_rows(p, input, offset, mask, n, begin, end, samples);
  pack(samples, count, p.K, p.C, columns, 0, panel_count(count));
  // Multiply the rows of the weight by them. A part of a panel of pixels stays in the first-level cache.
  for_parts(depth, [&](int64_t part, int64_t part_depth) __attribute__((always_inline)) {
    for (int64_t panel = 0; panel < panel_count(count); ++panel) {
      float* panel_sums = sums + panel * kPanel * C_out;
      multiply_rows(
          weight + part, C_out, depth, columns + (panel * depth + part) * kPanel, part_depth, [](int64_t) {},
          [&](int64_t o, F low, F high) {
            float* to = panel_sums + o * kPanel;
            store(to, part == 0 ? low : load(to) + low);
            store(to + L, part == 0 ? high : load(to + L) + high);
          });
    }
  });
  // Add the bias, and write back.
  for (int64_t i = 0; i < count; ++i) {
    const float* from = sums + i / kPanel * kPanel * C_out + i % kPanel;
    float* to = out.pixel<float>(n, begin + i);
    for (int64_t o = 0; o < C_out; ++o) to[o] = from[o * kPanel] + (bias != nullptr ? bias[o] : 0);
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

constexpr DeformConvKernels kDeformConvKernels = {packed_size,        pack,       panel_count, dense,
                                                  few_pixels_scratch, few_pixels, depthwise};

}  // namespace

const DeformConvKernels& DANET_ISA::deform_conv_kernels(DType) { return kDeformConvKernels; }

}  // namespace danet
