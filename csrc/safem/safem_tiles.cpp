// The CPU kernels of SaFEM in bfloat16 on the matrix unit.
#include <cmath>

#include "../common/amx.h"
#include "safem_taps.h"

namespace danet {
namespace {

// The weights are stored as the right operands of TileBlock: for each panel of kBlockColumns columns, all depths.
template <>
struct Layer<BFloat16> {
  static constexpr bool kReadsPadding = true;

  static int64_t depth(int64_t C) { return (C + kTileDepth - 1) / kTileDepth; }
  static int64_t panels(int64_t columns) { return (columns + kBlockColumns - 1) / kBlockColumns; }
  static int64_t padded(int64_t columns) { return panels(columns) * kBlockColumns; }
  static int64_t padded_rows(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows * kBlockRows; }
  static int64_t weight_size(int64_t columns, int64_t C) { return panels(columns) * depth(C) * kRightSize / 2; }

  static void prepare(const float* weight, int64_t columns, int64_t C, float* prepared) {
    BFloat16* right = reinterpret_cast<BFloat16*>(prepared);
    for (int64_t panel = 0; panel < panels(columns); ++panel)
      for (int64_t d = 0; d < depth(C); ++d, right += kRightSize)
        pack_right(right, [&](int64_t row, int64_t lane) {
          const int64_t c = d * kTileDepth + row, column = panel * kBlockColumns + lane;
          return from_compute<BFloat16>(c < C && column < columns ? weight[column * C + c] : 0);
        });
  }

  // exp(x) for |x| < 20
  static DANET_INLINE F exp(F x) { return exp2_fast(x * 1.44269504f); }

  // gelu(x) = x * Phi(x) = max(x, 0) - g(|x|), with Phi the cumulative normal distribution and g(u) = u * (1 - Phi(u)).
  // g(u) is u times a minimax polynomial up to u = 4, and almost zero beyond. The error is below 1.4e-4, less than the
  // rounding error of results from 0.125 on. The exact form takes twice as long.
  static DANET_INLINE F gelu(F x) {
    const F u = clamp_max(magnitude(x), 4.0f);
    F p = u * 4.86907575e-5f - 1.43951965e-3f;
    p = p * u + 1.52396247e-2f;
    p = p * u - 7.61512174e-2f;
    p = p * u + 1.76186035e-1f;
    p = p * u - 8.13889494e-2f;
    p = p * u - 3.70625286e-1f;
    p = p * u + 4.96678264e-1f;
    return clamp_min(x, 0.0f) - u * p;
  }

  template <typename Out, typename Activation>
  static DANET_INLINE void apply(
      const BFloat16* rows, int64_t count, int64_t stride, const float* weight, const float* bias, int64_t C,
      int64_t columns, Out* out, int64_t out_stride, const Activation& activation) {
    const BFloat16* right = reinterpret_cast<const BFloat16*>(weight);
    // The rows of a block are written between the products of the next block, because the matrix unit and the vector
    // units work at the same time.
    alignas(64) float sums[2][kBlockRows * kBlockColumns];
    struct {
      const float *sums, *bias;
      Out* out;
      int64_t rows = 0;
    } unwritten;
    const auto write_rows = [&](int64_t rows) __attribute__((always_inline)) {
      rows = rows < unwritten.rows ? rows : unwritten.rows;
      unwritten.rows -= rows;
      for (; rows > 0; --rows, unwritten.sums += kBlockColumns, unwritten.out += out_stride)
#pragma GCC unroll 8
        for (int64_t lane = 0; lane < kBlockColumns; lane += 2 * L) {
          const auto result = [&](int64_t i) __attribute__((always_inline)) {
            return activation(load(unwritten.sums + i) + load(unwritten.bias + i));
          };
          store_two(unwritten.out + lane, result(lane), result(lane + L));
        }
    };
    TileBlock tiles;
    const int64_t steps = depth(C), rows_per_step = (kBlockRows + steps - 1) / steps;
    int current = 0;
    for (int64_t panel = 0; panel < panels(columns); ++panel, right += steps * kRightSize)
      for (int64_t first = 0; first < count; first += kBlockRows, current = 1 - current) {
        // Multiply a block of rows with one panel
        tiles.clear();
        for (int64_t d = 0; d < steps; ++d) {
          tiles.multiply_add(rows + first * stride + d * kTileDepth, stride, right + d * kRightSize);
          write_rows(rows_per_step);
        }
        tiles.store(sums[current]);
        // Add the bias, apply the activation, and write back later
        unwritten.sums = sums[current];
        unwritten.bias = bias + panel * kBlockColumns;
        unwritten.out = out + first * out_stride + panel * kBlockColumns;
        unwritten.rows = count - first < kBlockRows ? count - first : kBlockRows;
      }
    write_rows(kBlockRows);
  }
};

template <>
struct Source<BFloat16> {
  ImageView input;
  PairsView pairs;

  Source(const SafemParams&, ImageView input, const PairsView& pairs) : input(input), pairs(pairs) {}

  static int64_t pairs_size(const SafemParams& p) { return p.N * PairImage(p).image_stride; }
  static float write_pair_image(
      const SafemParams& p, ImageView input, int64_t n, int64_t begin, int64_t end, int exponent, uint32_t* pairs) {
    return danet::write_pair_image(p, input, n, begin, end, exponent, pairs);
  }
  static int pair_exponent(const SafemParams& p, ImageView input, int64_t n, float largest) {
    return danet::pair_exponent(p, input, n, largest);
  }

  static int64_t weight_size(int64_t C) { return depthwise_size(C); }
  static void prepare(const float* weight, int64_t C, float* prepared) { prepare_depthwise(weight, C, prepared); }

  // The predictor's weight [columns, C] is the left operand of the matrix product, and the pixels are the right one, so
  // that the results have the pixels side by side.
  static void prepare_predictor(const float* weight, int64_t columns, int64_t C, float* prepared) {
    BFloat16* const left = reinterpret_cast<BFloat16*>(prepared);
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t c = 0; c < C; ++c)
        left[column * Layer<BFloat16>::depth(C) * kTileDepth + c] = from_compute<BFloat16>(weight[column * C + c]);
  }
  static int64_t prediction_columns(const SafemParams&) { return 0; }
  static int64_t sample_scratch_size(const SafemParams& p) {
    return prediction_size(p) * int64_t(sizeof(float)) + right_size(p) * int64_t(sizeof(BFloat16));
  }

  void sample(
      const SafemParams& p, const WeightLayout<BFloat16>& layout, const float* prepared, int64_t n, int64_t begin,
      int64_t end, const BlockRows<BFloat16>& rows) const {
    const PairImage image(p);
    const uint32_t* const first_pair = pairs.data + n * image.image_stride;
    const float scale = std::ldexp(1.0f, pairs.exponents[n]);
    float* const values = reinterpret_cast<float*>(rows.sample_scratch);
    const Predictions predictions{values, prepared + layout.predictor_bias, kSafemTaps * p.G, kBlockRows};
    for (int64_t first = begin; first < end; first += kBlockRows) {
      const int64_t count = end - first < kBlockRows ? end - first : kBlockRows;
      BFloat16* const out = rows.features + (first - begin) * rows.C;
      const float *depthwise = prepared + layout.depthwise, *depthwise_bias = prepared + layout.depthwise_bias;
      if (!convolve_depthwise(p, image, first_pair, scale, first, count, depthwise, depthwise_bias, out, rows.C))
        convolve_depthwise_in_float32(p, input, n, first, count, depthwise, depthwise_bias, out, rows.C);
      predict(p, prepared + layout.predictor, out, rows.C, values);
      // Sample with SDC.
      for (int64_t i = 0; i < count; i += L) {
        const int64_t pixels = count - i < L ? count - i : L;
        const bool is_finite = sample_pixels(
            p, predictions, Centers(p, first + i), i, pixels, first_pair, scale, out + i * rows.C, rows.C);
        if (!is_finite) sample_in_float32(p, predictions, n, first + i, i, pixels, out + i * rows.C, rows.C);
      }
    }
  }

 private:
  static int64_t prediction_size(const SafemParams& p) {
    return Layer<BFloat16>::padded(3 * kSafemTaps * p.G) * kBlockRows;
  }
  static int64_t right_size(const SafemParams& p) { return Layer<BFloat16>::depth(p.C) * kRightSize; }

  // The predictor's results without the bias for kBlockRows pixels with the features `left`.
  static void predict(const SafemParams& p, const float* weight, const BFloat16* features, int64_t stride, float* to) {
    const int64_t depth = Layer<BFloat16>::depth(p.C), columns = Layer<BFloat16>::padded(3 * kSafemTaps * p.G);
    BFloat16* const right = reinterpret_cast<BFloat16*>(to + prediction_size(p));
    for (int64_t d = 0; d < depth; ++d) pack_rows(features + d * kTileDepth, stride, right + d * kRightSize);
    const BFloat16* left = reinterpret_cast<const BFloat16*>(weight);
    TileBlock tiles;
    for (int64_t column = 0; column < columns; column += kBlockRows, left += kBlockRows * depth * kTileDepth) {
      tiles.clear();
      for (int64_t d = 0; d < depth; ++d)
        tiles.multiply_add(left + d * kTileDepth, depth * kTileDepth, right + d * kRightSize);
      tiles.store(to + column * kBlockRows);
    }
  }

  // Computes those groups again whose results are not finite, as in sdc: a sum may have overflowed, or a corner of
  // weight zero is not finite.
  void sample_in_float32(
      const SafemParams& p, const Predictions& predictions, int64_t n, int64_t first, int64_t pixel, int64_t count,
      BFloat16* out, int64_t stride) const {
    const SdcParams sdc = sdc_params(p);
    const CellBounds bounds(sdc, input, 0, p.H);
    const int64_t channels = p.C / p.G;
    TapTable<float> taps(sdc);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t g = 0; g < p.G; ++g) {
        BFloat16* const to = out + i * stride + g * channels;
        if (all_finite(to, channels)) continue;
        float offset[2 * kSafemTaps], logits[kSafemTaps];
        predictions.of_pixel(pixel + i, g, offset, logits);
        const TapInputs<float, float> inputs{offset,
                                             logits,
                                             float((first + i) / p.W),
                                             float((first + i) % p.W),
                                             kSafemTaps,
                                             uint32_t(input.pixel_stride),
                                             0};
        sum_taps_checked(sdc, taps, inputs, bounds, input.pixel<BFloat16>(n, 0) + g * channels, to, channels);
      }
  }
};

}  // namespace

const SafemKernels& DANET_ISA::safem_tile_kernels() { return kKernels<BFloat16>; }

}  // namespace danet
