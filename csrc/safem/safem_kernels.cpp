// The CPU kernels of SaFEM in float32.
#include "../common/matrix.h"
#include "safem_block.h"

namespace danet {
namespace {

// The weights are stored as panels (matrix.h).
template <>
struct Layer<float> {
  static constexpr bool kReadsPadding = false;

  static int64_t padded(int64_t columns) { return panel_count(columns) * kPanel; }
  static int64_t padded_rows(int64_t rows) { return rows; }
  static int64_t weight_size(int64_t columns, int64_t C) { return padded(columns) * C; }
  static void prepare(const float* weight, int64_t columns, int64_t C, float* prepared) {
    pack_panels(weight, columns, C, prepared);
  }

  // exp(x) for |x| < 20
  static DANET_INLINE F exp(F x) { return exp_unchecked(x); }

  // gelu(x) = x * Phi(x), with Phi the cumulative normal distribution. Its tail is approximated to 1e-7 by formula
  // 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions.
  static DANET_INLINE F gelu(F x) {
    const F z = (x < 0.0f ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
    F tail = t * 0.5307027145f - 0.7265760135f;
    tail = tail * t + 0.7107068705f;
    tail = tail * t - 0.142248368f;
    tail = tail * t + 0.127414796f;
    tail = tail * t * exp_unchecked(-clamp_max(z * z, 80.0f));
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }

  template <typename Activation>
  static DANET_INLINE void apply(
      const float* rows, int64_t count, int64_t stride, const float* weight, const float* bias, int64_t C,
      int64_t columns, float* out, int64_t out_stride, const Activation& activation) {
    for (int64_t panel = 0; panel < panel_count(columns);
         ++panel, weight += C * kPanel, bias += kPanel, out += kPanel) {
      const F low_bias = load(bias), high_bias = load(bias + L);
      // Multiply the rows with one panel, and prefetch the next one meanwhile.
      const float* next = weight + C * kPanel;
      const auto prefetch_next = [&](int64_t c) __attribute__((always_inline)) {
        for (int line = 0; line < kPanel; line += 16) __builtin_prefetch(next + c * kPanel + line, 0, 2);
      };
      multiply_rows(
          rows, count, stride, weight, C, prefetch_next,
          [&](int64_t row, F low, F high) __attribute__((always_inline)) {
            store(out + row * out_stride, activation(low + low_bias));
            store(out + row * out_stride + L, activation(high + high_bias));
          });
    }
  }
};

// The depth-wise weight is stored as [tap, channel].
template <>
struct Source<float> {
  ImageView input;
  CellBounds bounds;
  uint32_t stride;

  Source(const SafemParams& p, ImageView input, const PairsView& /* pairs */)
      : input(input), bounds(sdc_params(p), input, 0, p.H), stride(uint32_t(input.pixel_stride)) {}

  static int64_t pairs_size(const SafemParams&) { return 0; }
  static float write_pair_image(const SafemParams&, ImageView, int64_t, int64_t, int64_t, int, uint32_t*) { return 0; }
  static int pair_exponent(const SafemParams&, ImageView, int64_t, float) { return 0; }

  static int64_t weight_size(int64_t C) { return kSafemTaps * Layer<float>::padded(C); }
  static void prepare(const float* weight, int64_t C, float* prepared) {
    for (int64_t c = 0; c < C; ++c)
      for (int64_t k = 0; k < kSafemTaps; ++k) prepared[k * Layer<float>::padded(C) + c] = weight[c * kSafemTaps + k];
  }

  static void prepare_predictor(const float* weight, int64_t columns, int64_t C, float* prepared) {
    Layer<float>::prepare(weight, columns, C, prepared);
  }
  static int64_t prediction_columns(const SafemParams& p) { return Layer<float>::padded(3 * kSafemTaps * p.G); }
  static int64_t sample_scratch_size(const SafemParams&) { return 0; }

  void sample(
      const SafemParams& p, const WeightLayout<float>& layout, const float* prepared, int64_t n, int64_t begin,
      int64_t end, const BlockRows<float>& rows) const {
    const int64_t count = end - begin, num_taps = kSafemTaps * p.G, group_channels = p.C / p.G;
    // Predict the offsets and the mask.
    for (int64_t i = begin; i < end; ++i)
      depthwise_relu(
          p, prepared + layout.depthwise, prepared + layout.depthwise_bias, n, i, rows.features + (i - begin) * rows.C);
    Layer<float>::apply(
        rows.features, count, rows.C, prepared + layout.predictor, prepared + layout.predictor_bias, p.C, 3 * num_taps,
        rows.predictions, rows.predicted, [](F v) { return v; });

    // Sample with SDC.
    const SdcParams sdc = sdc_params(p);
    TapTable<float> taps(sdc);
    for (int64_t i = begin; i < end; ++i) {
      const float* predicted = rows.predictions + (i - begin) * rows.predicted;
      const int64_t y = i / p.W, x = i - y * p.W;
      for (int64_t g = 0; g < p.G; g += taps.groups) {
        const int64_t groups = g + taps.groups <= p.G ? taps.groups : p.G - g;
        const TapInputs<float, float> inputs{
            predicted + 2 * g * kSafemTaps,
            predicted + 2 * num_taps + g * kSafemTaps,
            float(sdc_center(sdc, 0) + double(y)),
            float(sdc_center(sdc, 1) + double(x)),
            groups * kSafemTaps,
            stride,
            0};
        const int64_t channel = g * group_channels;
        danet::sum_taps(
            sdc, taps, inputs, bounds, input.pixel<float>(n, 0) + channel,
            rows.features + (i - begin) * rows.C + channel, group_channels);
      }
    }
  }

 private:
  DANET_INLINE void depthwise_relu(
      const SafemParams& p, const float* weight, const float* bias, int64_t n, int64_t i, float* out) const {
    const int64_t y = i / p.W, x = i - y * p.W, C_pad = Layer<float>::padded(p.C);
    // Collect the taps inside the image.
    const float* pixels[kSafemTaps];
    const float* weights[kSafemTaps];
    int count = 0;
    for (int64_t k = 0; k < kSafemTaps; ++k) {
      const int64_t row = y + k / 3 - 1, column = x + k % 3 - 1;
      if (row < 0 || row >= p.H || column < 0 || column >= p.W) continue;
      pixels[count] = input.pixel<float>(n, row * p.W + column);
      weights[count++] = weight + k * C_pad;
    }
    // Sum them, one vector of channels at a time.
    for_vectors_of<float>(p.C, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      F sum = load(bias + c);
      for (int k = 0; k < count; ++k) sum += load(weights[k] + c) * load_channels(pixels[k] + c, lanes);
      store(out + c, clamp_min(sum, 0.0f));
    });
  }
};

}  // namespace

const SafemKernels& DANET_ISA::safem_kernels(DType /* dtype */) { return kKernels<float>; }

}  // namespace danet
