// Winograd's F(4x4, 3x3) for the CPU, Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). A block of
// tiles is transformed into the second-level cache; for a panel of output channels at a time 36 small matrix products run
// over it, and their results are transformed back while they are still there.
#pragma once

#include "../common/matrix.h"
#include "rep_conv.h"

namespace danet {
namespace {

constexpr int L = kLanes<float>;
constexpr int64_t kCacheBytes = 640 << 10;  // for a block of transformed tiles; the second-level cache has 1 MiB or more

// B^T d: six values in, six out.
DANET_INLINE void input_transform(const F (&d)[6], F (&t)[6]) {
  F even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
  F difference = d[4] - d[2], twice = 2.0f * (d[3] - d[1]);
  t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  t[1] = even + odd;
  t[2] = even - odd;
  t[3] = difference + twice;
  t[4] = difference - twice;
  t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// A^T m: six values in, four out.
DANET_INLINE void output_transform(const F (&m)[6], F (&y)[4]) {
  F sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum1 + sum2;
  y[1] = difference1 + 2.0f * difference2;
  y[2] = sum1 + 4.0f * sum2;
  y[3] = difference1 + 8.0f * difference2 + m[5];
}

// G w: three values in, six out; in double, since it is done once.
void weight_transform(const double* w, int64_t step, double* t, int64_t step_out) {
  double a = w[0], b = w[step], c = w[2 * step];
  t[0] = a / 4;
  t[step_out] = -(a + b + c) / 6;
  t[2 * step_out] = -(a - b + c) / 6;
  t[3 * step_out] = a / 24 + b / 12 + c / 6;
  t[4 * step_out] = a / 24 - b / 12 + c / 6;
  t[5 * step_out] = c;
}

template <typename T>
void prepare(const RepConvParams& p, const void* weight, float* prepared, int64_t begin, int64_t end) {
  const int64_t panels = (p.C_out + kPanel - 1) / kPanel;
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t c = 0; c < p.C; ++c)
      for (int64_t lane = 0; lane < kPanel; ++lane) {
        int64_t o = panel * kPanel + lane;
        double w[9] = {}, half[18], whole[36];
        for (int i = 0; i < 9 && o < p.C_out; ++i)
          w[i] = double(to_compute(static_cast<const T*>(weight)[(o * p.C + c) * 9 + i]));
        for (int j = 0; j < 3; ++j) weight_transform(w + j, 3, half + j, 3);
        for (int i = 0; i < 6; ++i) weight_transform(half + 3 * i, 1, whole + 6 * i, 1);
        for (int k = 0; k < 36; ++k)
          prepared[((k * panels + panel) * p.C + c) * kPanel + lane] = float(whole[k]);
      }
}

// Distances between the 36 planes of transformed tiles, kept off the powers of two that share a cache set.
int64_t input_plane(const RepConvParams& p, int64_t tiles) { return tiles * ((p.C + L - 1) / L * L) + 16; }
int64_t output_plane(int64_t tiles) { return tiles * kPanel + 16; }
// Floats that hold a pixel of zeros, in whole cache lines.
int64_t zeros_size(const RepConvParams& p) { return (p.C + 15) / 16 * 16; }

int64_t tiles_at_once(const RepConvParams& p) {
  int64_t tiles = kCacheBytes / (36 * 4 * ((p.C + L - 1) / L * L)) / 8 * 8;
  return tiles < 8 ? 8 : tiles > 96 ? 96 : tiles;
}

// Zeros for a pixel outside, the transformed tiles, the products of one panel.
template <typename T>
int64_t scratch_size(const RepConvParams& p, int64_t tiles) {
  return 4 * (zeros_size(p) + 36 * (input_plane(p, tiles) + output_plane(tiles)));
}

struct Tile {
  int64_t n, y, x;  // image, first output row and column

  Tile(const RepConvParams& p, int64_t index) {
    int64_t rows = (p.H + 3) / 4, columns = (p.W + 3) / 4;
    n = index / (rows * columns);
    y = index / columns % rows * 4;
    x = index % columns * 4;
  }
};

// transformed[36][C]: B^T d B of the tile's 6x6 input pixels.
template <typename T>
void transform_input(
    const RepConvParams& p, const ImageView& input, const Tile& tile, const T* zeros, float* transformed,
    int64_t plane) {
  const T* pixels[36];
  for (int i = 0; i < 36; ++i) {
    int64_t y = tile.y - 1 + i / 6, x = tile.x - 1 + i % 6;
    bool inside = y >= 0 && y < p.H && x >= 0 && x < p.W;
    pixels[i] = inside ? input.pixel<T>(tile.n, y * p.W + x) : zeros;
  }
  for (int64_t c = 0; c < p.C; c += L) {
    const bool whole = c + L <= p.C;
    F columns[6][6];  // [j][i]
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      F d[6];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i)
        d[i] = whole ? load(pixels[6 * i + j] + c) : load_first(pixels[6 * i + j] + c, p.C - c);
      input_transform(d, columns[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      F d[6], t[6];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) d[j] = columns[j][i];
      input_transform(d, t);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) store(transformed + (6 * i + j) * plane + c, t[j]);
    }
  }
}

// The tile's outputs of one vector of channels from products[36] (plane apart): A^T m A + bias, ReLU, store.
template <typename T>
DANET_INLINE void transform_output(
    const RepConvParams& p, const float* products, int64_t plane, F bias, const Tile& tile, const ImageView& out,
    int64_t o) {
  F columns[6][4];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    F m[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) m[i] = load(products + (6 * i + j) * plane);
    output_transform(m, columns[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (tile.y + i >= p.H) break;
    F m[6], y[4];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) m[j] = columns[j][i];
    output_transform(m, y);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      if (tile.x + j >= p.W) break;
      F result = y[j] + bias;
      if (p.relu) result = at_least(result, 0.0f);
      T* pixel = out.pixel<T>(tile.n, (tile.y + i) * p.W + tile.x + j) + o;
      o + L <= p.C_out ? store(pixel, result) : store_first(pixel, result, p.C_out - o);
    }
  }
}

template <typename T>
void forward(
    const RepConvParams& p, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
    int64_t end, int64_t first, int64_t last, char* scratch) {
  const int64_t tiles = end - begin, C_pad = (p.C + L - 1) / L * L, panels = (p.C_out + kPanel - 1) / kPanel;
  const int64_t plane_in = input_plane(p, tiles), plane_out = output_plane(tiles);
  T* zeros = reinterpret_cast<T*>(scratch);
  float* transformed = reinterpret_cast<float*>(scratch) + zeros_size(p);
  float* products = transformed + 36 * plane_in;
  std::memset(scratch, 0, size_t(p.C) * sizeof(T));
  for (int64_t t = 0; t < tiles; ++t)
    transform_input(p, input, Tile(p, begin + t), zeros, transformed + t * C_pad, plane_in);

  for (int64_t panel = first; panel < last; ++panel) {
    for (int64_t k = 0; k < 36; ++k) {
      float* product = products + k * plane_out;
      const float* weight = prepared + (k * panels + panel) * p.C * kPanel;
      multiply_rows(
          transformed + k * plane_in, tiles, C_pad, weight, weight + panels * p.C * kPanel, p.C,
          [&](int64_t t, F low, F high) __attribute__((always_inline)) {
            store(product + t * kPanel, low);
            store(product + t * kPanel + L, high);
          });
    }
    for (int64_t o = panel * kPanel; o < p.C_out && o < (panel + 1) * kPanel; o += L) {
      F b{};
      if (bias != nullptr) {
        const T* values = static_cast<const T*>(bias) + o;
        b = o + L <= p.C_out ? load(values) : load_first(values, p.C_out - o);
      }
      for (int64_t t = 0; t < tiles; ++t)
        transform_output<T>(
            p, products + t * kPanel + o % kPanel, plane_out, b, Tile(p, begin + t), out, o);
    }
  }
}

}  // namespace
}  // namespace danet
