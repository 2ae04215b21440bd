// Winograd's convolutions for the CPU, Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). A block of
// tiles is transformed into the second-level cache; for a panel of output channels at a time small matrix products run over
// it, and their results are transformed back while they are still there.
//
// A tile of 4x4 outputs reads kSide^2 input pixels and needs kSide^2 products instead of 144: 36 at stride 1, 81 at stride
// 2. All transforms are those of one axis, used on both.
#pragma once

#include "../common/matrix.h"
#include "rep_conv.h"

namespace danet {
namespace {

constexpr int L = kLanes<float>;
constexpr int64_t kCacheBytes = 640 << 10;  // for a block of transformed tiles; the second-level cache has 1 MiB or more

// F(4, 3): six values for four outputs; the points 0, 1, -1, 2, -2 and infinity.
struct Stride1 {
  static constexpr int kStride = 1, kSide = 6;

  // B^T d
  static DANET_INLINE void input(const F (&d)[6], F (&t)[6]) {
    F even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
    F difference = d[4] - d[2], twice = 2.0f * (d[3] - d[1]);
    t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = difference + twice;
    t[4] = difference - twice;
    t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }
  // A^T m
  static DANET_INLINE void output(const F (&m)[6], F (&y)[4]) {
    F sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum1 + sum2;
    y[1] = difference1 + 2.0f * difference2;
    y[2] = sum1 + 4.0f * sum2;
    y[3] = difference1 + 8.0f * difference2 + m[5];
  }
  // Which of a weight's six transformed values multiplies value i.
  static constexpr int weight(int i) { return i; }
  // G w, in double since it is done once.
  static void transform_weight(const double (&w)[3], double (&t)[6]) {
    const double a = w[0], b = w[1], c = w[2];
    t[0] = a / 4;
    t[1] = -(a + b + c) / 6;
    t[2] = -(a - b + c) / 6;
    t[3] = a / 24 + b / 12 + c / 6;
    t[4] = a / 24 - b / 12 + c / 6;
    t[5] = c;
  }
};

// y[i] = w[0] d[2i] + w[1] d[2i + 1] + w[2] d[2i + 2]: of the even values F(4, 2), five products for four outputs, at the
// points 0, 1, -1, 2 and infinity; of the odd ones, which meet one weight alone, four.
struct Stride2 {
  static constexpr int kStride = 2, kSide = 9;

  static DANET_INLINE void input(const F (&d)[9], F (&t)[9]) {
    F difference = d[6] - d[2], middle = d[2] - d[4];
    t[0] = 2.0f * (d[0] - d[4]) + difference;
    t[1] = difference - d[2] - d[4];
    t[2] = difference + 3.0f * middle;
    t[3] = difference;
    t[4] = 2.0f * (d[2] - d[6]) + d[8] - d[4];
    t[5] = d[1], t[6] = d[3], t[7] = d[5], t[8] = d[7];
  }
  static DANET_INLINE void output(const F (&m)[9], F (&y)[4]) {
    F sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = m[0] + sum + m[3] + m[5];
    y[1] = difference + 2.0f * m[3] + m[6];
    y[2] = sum + 4.0f * m[3] + m[7];
    y[3] = difference + 8.0f * m[3] + m[4] + m[8];
  }
  static constexpr int weight(int i) { return i < 5 ? i : 5; }
  static void transform_weight(const double (&w)[3], double (&t)[6]) {
    const double a = w[0], c = w[2];
    t[0] = a / 2;
    t[1] = -(a + c) / 2;
    t[2] = -(a - c) / 6;
    t[3] = (a + 2 * c) / 6;
    t[4] = c;
    t[5] = w[1];
  }
};

template <typename Scheme>
constexpr int kPlanes = Scheme::kSide * Scheme::kSide;
// Which of the 36 transformed weights belongs to a plane.
template <typename Scheme>
int64_t weight_of(int plane) {
  return 6 * Scheme::weight(plane / Scheme::kSide) + Scheme::weight(plane % Scheme::kSide);
}

template <typename Scheme, typename T>
void prepare(const RepConvParams& p, const void* weight, float* prepared, int64_t begin, int64_t end) {
  const int64_t panels = panels_of(p.C_out);
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t c = 0; c < p.C; ++c)
      for (int64_t lane = 0; lane < kPanel; ++lane) {
        const int64_t o = panel * kPanel + lane;
        double columns[3][6] = {};  // [j]: G of the column w[.][j]
        for (int j = 0; j < 3 && o < p.C_out; ++j) {
          const T* w = static_cast<const T*>(weight) + (o * p.C + c) * 9 + j;
          Scheme::transform_weight({to_compute(w[0]), to_compute(w[3]), to_compute(w[6])}, columns[j]);
        }
        for (int i = 0; i < 6; ++i) {
          double row[6];
          Scheme::transform_weight({columns[0][i], columns[1][i], columns[2][i]}, row);
          for (int j = 0; j < 6; ++j)
            prepared[(((6 * i + j) * panels + panel) * p.C + c) * kPanel + lane] = float(row[j]);
        }
      }
}

struct Tile {
  int64_t n, y, x;      // image, first output row and column
  int64_t H_out, W_out;

  Tile(const RepConvParams& p, int64_t index) : H_out(p.H_out()), W_out(p.W_out()) {
    const int64_t rows = (H_out + 3) / 4, columns = (W_out + 3) / 4;
    n = index / (rows * columns);
    y = index / columns % rows * 4;
    x = index % columns * 4;
  }
};

// Distances between the planes of transformed tiles, kept off the powers of two that share a cache set.
inline int64_t input_plane(const RepConvParams& p, int64_t tiles) { return tiles * ((p.C + L - 1) / L * L) + 16; }
inline int64_t output_plane(int64_t tiles) { return tiles * kPanel + 16; }
// Floats that hold a pixel of zeros, in whole cache lines.
inline int64_t zeros_size(const RepConvParams& p) { return (p.C + 15) / 16 * 16; }

template <typename Scheme>
int64_t tiles_at_once(const RepConvParams& p) {
  const int64_t tiles = kCacheBytes / (kPlanes<Scheme> * 4 * ((p.C + L - 1) / L * L)) / 8 * 8;
  return tiles < 8 ? 8 : tiles > 96 ? 96 : tiles;
}

// Zeros for a pixel outside, the transformed tiles, the products of one panel, the tiles' places.
template <typename Scheme>
int64_t scratch_size(const RepConvParams& p, int64_t tiles) {
  return 4 * (zeros_size(p) + kPlanes<Scheme> * (input_plane(p, tiles) + output_plane(tiles))) +
         tiles * int64_t(sizeof(Tile));
}

// transformed[planes][C]: B^T d B of the tile's input pixels.
template <typename Scheme, typename T>
void transform_input(
    const RepConvParams& p, const ImageView& input, const Tile& tile, const T* zeros, float* transformed,
    int64_t plane) {
  constexpr int S = Scheme::kSide;
  const T* pixels[S * S];
  for (int i = 0; i < S * S; ++i) {
    const int64_t y = tile.y * Scheme::kStride - 1 + i / S, x = tile.x * Scheme::kStride - 1 + i % S;
    const bool inside = y >= 0 && y < p.H && x >= 0 && x < p.W;
    pixels[i] = inside ? input.pixel<T>(tile.n, y * p.W + x) : zeros;
  }
  for (int64_t c = 0; c < p.C; c += L) {
    const bool whole = c + L <= p.C;
    F columns[S][S];  // [j][i]
#pragma GCC unroll 9
    for (int j = 0; j < S; ++j) {
      F d[S];
#pragma GCC unroll 9
      for (int i = 0; i < S; ++i)
        d[i] = whole ? load(pixels[S * i + j] + c) : load_first(pixels[S * i + j] + c, p.C - c);
      Scheme::input(d, columns[j]);
    }
#pragma GCC unroll 9
    for (int i = 0; i < S; ++i) {
      F d[S], t[S];
#pragma GCC unroll 9
      for (int j = 0; j < S; ++j) d[j] = columns[j][i];
      Scheme::input(d, t);
#pragma GCC unroll 9
      for (int j = 0; j < S; ++j) store(transformed + (S * i + j) * plane + c, t[j]);
    }
  }
}

// The tile's outputs of one vector of channels from its products (plane apart): A^T m A + bias, ReLU, store.
template <typename Scheme, typename T>
DANET_INLINE void transform_output(
    const RepConvParams& p, const float* products, int64_t plane, F bias, const Tile& tile, const ImageView& out,
    int64_t o) {
  constexpr int S = Scheme::kSide;
  F columns[S][4];
#pragma GCC unroll 9
  for (int j = 0; j < S; ++j) {
    F m[S];
#pragma GCC unroll 9
    for (int i = 0; i < S; ++i) m[i] = load(products + (S * i + j) * plane);
    Scheme::output(m, columns[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (tile.y + i >= tile.H_out) break;
    F m[S], y[4];
#pragma GCC unroll 9
    for (int j = 0; j < S; ++j) m[j] = columns[j][i];
    Scheme::output(m, y);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      if (tile.x + j >= tile.W_out) break;
      F result = y[j] + bias;
      if (p.relu) result = at_least(result, 0.0f);
      T* pixel = out.pixel<T>(tile.n, (tile.y + i) * tile.W_out + tile.x + j) + o;
      o + L <= p.C_out ? store(pixel, result) : store_first(pixel, result, p.C_out - o);
    }
  }
}

template <typename Scheme, typename T>
void forward(
    const RepConvParams& p, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
    int64_t end, int64_t first, int64_t last, char* scratch) {
  const int64_t tiles = end - begin, C_pad = (p.C + L - 1) / L * L, panels = panels_of(p.C_out);
  const int64_t plane_in = input_plane(p, tiles), plane_out = output_plane(tiles);
  T* zeros = reinterpret_cast<T*>(scratch);
  float* transformed = reinterpret_cast<float*>(scratch) + zeros_size(p);
  float* products = transformed + kPlanes<Scheme> * plane_in;
  std::memset(scratch, 0, size_t(p.C) * sizeof(T));
  Tile* const places = reinterpret_cast<Tile*>(products + kPlanes<Scheme> * plane_out);
  for (int64_t t = 0; t < tiles; ++t) {
    places[t] = Tile(p, begin + t);
    transform_input<Scheme>(p, input, places[t], zeros, transformed + t * C_pad, plane_in);
  }

  for (int64_t panel = first; panel < last; ++panel) {
    const auto weight = [&](int k) { return prepared + (weight_of<Scheme>(k) * panels + panel) * p.C * kPanel; };
    for (int k = 0; k < kPlanes<Scheme>; ++k) {
      float* product = products + k * plane_out;
      multiply_rows(
          transformed + k * plane_in, tiles, C_pad, weight(k), weight(k + 1 < kPlanes<Scheme> ? k + 1 : k), p.C,
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
        transform_output<Scheme, T>(
            p, products + t * kPanel + o % kPanel, plane_out, b, places[t], out, o);
    }
  }
}

template <typename Scheme, typename T>
constexpr WinogradKernels kWinograd = {
    tiles_at_once<Scheme>, scratch_size<Scheme>, prepare<Scheme, T>, forward<Scheme, T>};

}  // namespace
}  // namespace danet
