// SaFEM on the CPU (safem.h) for images of the dtype T. A block of pixels goes through all steps while it is in the L2
// cache, so that intermediate results never reach memory. Offsets, the softmax and the sums of the 1x1 convolutions are
// float32; in bfloat16, those of the sampling and of the depth-wise convolution may be float16 (pairs.h).
//
// The file that includes this one defines two parts for T: Layer<T>, a 1x1 convolution, which multiplies rows of C
// values of type T by a matrix [columns, C], and Source<T>, which reads the image: the depth-wise convolution and the
// sampling. Both choose the layout of their weights.
#pragma once

#include "../sdc/sdc_forward.h"
#include "../softmax_gate/softmax_rows.h"
#include "safem.h"

namespace danet {
namespace {

using F = Vec<float>;
constexpr int L = kLanes<float>;

// A 1x1 convolution with a prepared weight:
//   static int64_t padded(int64_t columns)             columns, rounded up as `prepare` and `apply` need it
//   static int64_t padded_rows(int64_t rows)           the number of rows that `apply` reads for `rows` rows
//   static constexpr bool kReadsPadding                whether `apply` reads values between C and padded(C)
//   static int64_t weight_size(int64_t columns, int64_t C)   the size of a prepared weight, in floats
//   static void prepare(const float* weight, int64_t columns, int64_t C, float* prepared)
//   static void apply(
//       const T* rows, int64_t count, int64_t stride, const float* prepared, const float* bias, int64_t C,
//       int64_t columns, Out* out, int64_t out_stride, activation)
//   static F gelu(F x)                                 the activation, as exact as T needs it
// `apply` computes out = activation(weight * row + bias) for `count` rows; `stride` and `out_stride` are the distances
// between successive rows, in values. bias has padded(columns) values, and so has each row of `out`.
template <typename T>
struct Layer;

// The image that the kernels read, and its sampling:
//   Source(const SafemParams&, ImageView input, const PairsView& pairs)
//   static int64_t pairs_size(p), static float write_pair_image(...), static int pair_exponent(...)   see SafemKernels
//   static int64_t weight_size(int64_t C)              the size of a prepared depth-wise weight, in floats
//   static void prepare(const float* weight, int64_t C, float* prepared)
//   static void prepare_predictor(const float* weight, int64_t columns, int64_t C, float* prepared)
//   static int64_t prediction_columns(p)               the row length of BlockRows::predictions for `sample`
//   static int64_t sample_scratch_size(p)              the size of BlockRows::sample_scratch, in bytes
//   void sample(p, layout, prepared, n, begin, end, rows)   rows.features = z of the pixels [begin, end) of image n
template <typename T>
struct Source;

// The offsets of the parts of the prepared weights, in floats.
template <typename T>
struct WeightLayout {
  int64_t depthwise, depthwise_bias, predictor, predictor_bias, expand, expand_bias, reduce, reduce_bias, size;

  explicit WeightLayout(const SafemParams& p) {
    const int64_t predicted = 3 * kSafemTaps * p.G, C = Layer<T>::padded(p.C), hidden = Layer<T>::padded(2 * p.C);
    depthwise = 0;
    depthwise_bias = depthwise + Source<T>::weight_size(p.C);
    predictor = depthwise_bias + C;
    predictor_bias = predictor + Layer<T>::weight_size(predicted, p.C);
    expand = predictor_bias + Layer<T>::padded(predicted);
    expand_bias = expand + Layer<T>::weight_size(2 * p.C, p.C);
    reduce = expand_bias + hidden;
    reduce_bias = reduce + Layer<T>::weight_size(p.C, 2 * p.C);
    size = reduce_bias + C;
  }
};

template <typename T>
int64_t prepared_size(const SafemParams& p) {
  return WeightLayout<T>(p).size;
}

template <typename T>
void prepare(const SafemParams& p, const SafemWeights& weights, float* prepared) {
  const WeightLayout<T> layout(p);
  const int64_t predicted = 3 * kSafemTaps * p.G;
  std::memset(prepared, 0, size_t(layout.size) * sizeof(float));
  Source<T>::prepare(weights.depthwise, p.C, prepared + layout.depthwise);
  std::memcpy(prepared + layout.depthwise_bias, weights.depthwise_bias, size_t(p.C) * sizeof(float));
  Source<T>::prepare_predictor(weights.predictor, predicted, p.C, prepared + layout.predictor);
  std::memcpy(prepared + layout.predictor_bias, weights.predictor_bias, size_t(predicted) * sizeof(float));
  Layer<T>::prepare(weights.expand, 2 * p.C, p.C, prepared + layout.expand);
  std::memcpy(prepared + layout.expand_bias, weights.expand_bias, size_t(2 * p.C) * sizeof(float));
  Layer<T>::prepare(weights.reduce, p.C, 2 * p.C, prepared + layout.reduce);
  std::memcpy(prepared + layout.reduce_bias, weights.reduce_bias, size_t(p.C) * sizeof(float));
}

// The scratch memory of a block, one row per pixel in each array.
template <typename T>
struct BlockRows {
  int64_t C, predicted, hidden;  // row lengths of features, predictions and hiddens, in values
  int64_t size;                  // of all arrays, in bytes
  T *features, *hiddens;
  float* predictions;  // later the logits of the channel softmax
  char* sample_scratch;

  // Clears the memory if rows have padding that `apply` reads, because the padding must be zero.
  BlockRows(const SafemParams& p, int64_t pixels, char* scratch)
      : C(Layer<T>::padded(p.C)), predicted(Source<T>::prediction_columns(p)), hidden(Layer<T>::padded(2 * p.C)) {
    if (predicted < C) predicted = C;
    const int64_t rows = Layer<T>::padded_rows(pixels);
    predictions = reinterpret_cast<float*>(scratch);
    features = reinterpret_cast<T*>(predictions + rows * predicted);
    hiddens = features + rows * C;
    sample_scratch = reinterpret_cast<char*>(hiddens + rows * hidden);
    size = rows * (predicted * int64_t(sizeof(float)) + (C + hidden) * int64_t(sizeof(T))) +
           Source<T>::sample_scratch_size(p);
    if (scratch == nullptr || !Layer<T>::kReadsPadding) return;
    if (C > p.C) std::memset(features, 0, size_t(rows * C) * sizeof(T));
    if (hidden > 2 * p.C) std::memset(hiddens, 0, size_t(rows * hidden) * sizeof(T));
  }

  // Memory for the exponentials of C channels of a pixel. It reuses the pixel's row of hidden features (2 * C values of
  // T, at least C floats), which is no longer needed then.
  float* exponentials(int64_t pixel) const { return reinterpret_cast<float*>(hiddens + pixel * hidden); }
};

template <typename T>
int64_t scratch_size(const SafemParams& p, int64_t pixels) {
  return BlockRows<T>(p, pixels, nullptr).size;
}

// Computes rows.predictions = FFN(rows.features) of `count` pixels.
template <typename T>
void apply_ffn(
    const SafemParams& p, const WeightLayout<T>& layout, const float* prepared, int64_t count, BlockRows<T>& rows) {
  Layer<T>::apply(
      rows.features, count, rows.C, prepared + layout.expand, prepared + layout.expand_bias, p.C, 2 * p.C, rows.hiddens,
      rows.hidden, [](F v) { return Layer<T>::gelu(v); });
  Layer<T>::apply(
      rows.hiddens, count, rows.hidden, prepared + layout.reduce, prepared + layout.reduce_bias, 2 * p.C, p.C,
      rows.predictions, rows.predicted, [](F v) { return v; });
}

template <typename T>
void forward(
    const SafemParams& p, ImageView input, const PairsView& pairs, const float* prepared, ImageView up,
    const float* weight, ImageView out, int64_t n, int64_t begin, int64_t end, char* scratch) {
  const WeightLayout<T> layout(p);
  const int64_t count = end - begin;
  BlockRows<T> rows(p, count, scratch);
  Source<T>(p, input, pairs).sample(p, layout, prepared, n, begin, end, rows);
  apply_ffn(p, layout, prepared, count, rows);

  // Apply the channel softmax gate, and write back.
  const int64_t up_W = (p.W + 1) / 2;
  const float scale = float(p.scale * double(p.C));
  int64_t row = begin / p.W, column = begin % p.W - 1;
  for (int64_t i = begin; i < end; ++i) {
    if (++column == p.W) column = 0, ++row;
    float* exps = rows.exponentials(i - begin);
    const float* logits = rows.predictions + (i - begin) * rows.predicted;
    const float factor = scale / exponentials<float>(logits, exps, p.C, [](F v) __attribute__((always_inline)) {
                           return Layer<T>::exp(v);
                         });
    const T* x = input.pixel<T>(n, i);
    T* result = out.pixel<T>(n, i);
    // Gate this level, or gate the deeper one and add this level times its weights.
    const T* deep =
        up.data == nullptr ? x : up.pixel<T>(n, row / 2 * up_W + column / 2) + (row % 2 * 2 + column % 2) * p.C;
    const auto gated = [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const F value = load(exps + c) * factor * load_channels(deep + c, lanes);
      return up.data == nullptr ? value : value + load_channels(weight + c, lanes) * load_channels(x + c, lanes);
    };
    int64_t c = 0;
    for (; c + 2 * L <= p.C; c += 2 * L) store_two(result + c, gated(c, 0), gated(c + L, 0));
    for (; c < p.C; c += L) {
      const int lanes = c + L <= p.C ? 0 : int(p.C - c);
      store_channels(result + c, gated(c, lanes), lanes);
    }
  }
}

template <typename T>
void sum(
    const SafemParams& p, ImageView input, const PairsView& pairs, const float* prepared, float* sum, int64_t n,
    int64_t begin, int64_t end, char* scratch) {
  BlockRows<T> rows(p, end - begin, scratch);
  Source<T>(p, input, pairs).sample(p, WeightLayout<T>(p), prepared, n, begin, end, rows);
  for_vectors_of<float>(p.C, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    F total{};
    for (int64_t i = 0; i < end - begin; ++i) total += load(rows.features + i * rows.C + c);
    store_channels(sum + c, total, lanes);
  });
}

template <typename T>
void channel_weight(const SafemParams& p, const float* mean, const float* prepared, float* weight, char* scratch) {
  const WeightLayout<T> layout(p);
  BlockRows<T> rows(p, 1, scratch);
  for (int64_t c = 0; c < p.C; ++c) rows.features[c] = from_compute<T>(mean[c]);
  apply_ffn(p, layout, prepared, 1, rows);
  for_vectors_of<float>(p.C, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    store_channels(weight + c, 1.0f / (1.0f + exp(-load(rows.predictions + c))), lanes);
  });
}

// Pixels per block: enough to reuse each panel of weights from the cache, and few enough to stay in the cache
// themselves.
template <typename T>
int64_t block_pixels(const SafemParams& p) {
  return Layer<T>::padded_rows(p.C <= 128 ? 96 : 48);
}

template <typename T>
constexpr SafemKernels kKernels = {
    prepared_size<T>,
    prepare<T>,
    Source<T>::pairs_size,
    Source<T>::write_pair_image,
    Source<T>::pair_exponent,
    block_pixels<T>,
    scratch_size<T>,
    forward<T>,
    sum<T>,
    channel_weight<T>};

}  // namespace
}  // namespace danet
