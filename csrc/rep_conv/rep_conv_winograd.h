// Winograd's convolution on the CPU: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016),
// https://arxiv.org/abs/1509.09308.
//
// A call transforms a block of input tiles into the L2 cache. Then, for each panel of output channels, it multiplies
// small matrices with the transformed weights, and applies the inverse transform to the products while they are still
// in the L2 cache. It transforms the weights of a panel in every call. NOTE: weights that were transformed in advance
// would take four times the memory, and reading them from memory would be slower than computing them.
//
// A tile of 4x4 outputs reads kSide^2 input pixels and needs kSide^2 products per channel instead of 144: 36 at stride
// 1, 81 at stride 2. All transforms are separable: the same 1-D transform is applied to both axes.
#pragma once

#include "../common/matrix.h"
#include "../common/vec_math.h"
#include "rep_conv.h"

namespace danet {
namespace {

constexpr int L = kLanes<float>;
constexpr int64_t kBlockBytes = 640 << 10;  // transformed tiles of a block; an L2 cache of 1 MiB has room for them

// F(4, 3): four outputs from six inputs, with the interpolation points 0, 1, -1, 2, -2 and infinity.
struct WinogradStride1 {
  static constexpr int kStride = 1, kSide = 6;

  // B^T d
  static DANET_INLINE void transform_input_1d(const F (&d)[6], F (&t)[6]) {
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
  static DANET_INLINE void transform_output_1d(const F (&m)[6], F (&y)[4]) {
    F sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum1 + sum2;
    y[1] = difference1 + 2.0f * difference2;
    y[2] = sum1 + 4.0f * sum2;
    y[3] = difference1 + 8.0f * difference2 + m[5];
  }
  // The index of the transformed weight that the transformed input i is multiplied with.
  static constexpr int weight_index(int i) { return i; }
  // G w
  static DANET_INLINE void transform_weight_1d(const F (&w)[3], F (&t)[6]) {
    F outer = (w[0] + w[2]) * (-1.0f / 6), middle = w[1] * (1.0f / 6);
    F rest = w[0] * (1.0f / 24) + w[2] * (1.0f / 6), half = w[1] * (1.0f / 12);
    t[0] = w[0] * 0.25f;
    t[1] = outer - middle;
    t[2] = outer + middle;
    t[3] = rest + half;
    t[4] = rest - half;
    t[5] = w[2];
  }
};

// Stride 2: y[i] = w[0] d[2i] + w[1] d[2i + 1] + w[2] d[2i + 2]. The even inputs are an F(4, 2) with weights w[0] and
// w[2]: five products, with the points 0, 1, -1, 2 and infinity. The odd inputs are multiplied by w[1] only: four
// products.
struct WinogradStride2 {
  static constexpr int kStride = 2, kSide = 9;

  static DANET_INLINE void transform_input_1d(const F (&d)[9], F (&t)[9]) {
    F difference = d[6] - d[2], middle = d[2] - d[4];
    t[0] = 2.0f * (d[0] - d[4]) + difference;
    t[1] = difference - d[2] - d[4];
    t[2] = difference + 3.0f * middle;
    t[3] = difference;
    t[4] = 2.0f * (d[2] - d[6]) + d[8] - d[4];
    t[5] = d[1], t[6] = d[3], t[7] = d[5], t[8] = d[7];
  }
  static DANET_INLINE void transform_output_1d(const F (&m)[9], F (&y)[4]) {
    F sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = m[0] + sum + m[3] + m[5];
    y[1] = difference + 2.0f * m[3] + m[6];
    y[2] = sum + 4.0f * m[3] + m[7];
    y[3] = difference + 8.0f * m[3] + m[4] + m[8];
  }
  static constexpr int weight_index(int i) { return i < 5 ? i : 5; }
  static DANET_INLINE void transform_weight_1d(const F (&w)[3], F (&t)[6]) {
    t[0] = w[0] * 0.5f;
    t[1] = (w[0] + w[2]) * -0.5f;
    t[2] = (w[2] - w[0]) * (1.0f / 6);
    t[3] = w[0] * (1.0f / 6) + w[2] * (1.0f / 3);
    t[4] = w[2];
    t[5] = w[1];
  }
};

// A plane holds one of the kSide^2 elements of all transformed tiles, [tiles][C], or of all products, [tiles][kPanel].
template <typename Scheme>
constexpr int kPlanes = Scheme::kSide * Scheme::kSide;

struct WinogradTile {
  int64_t n, y, x;  // image, first output row and column
  int64_t H_out, W_out;

  WinogradTile(const RepConvParams& p, int64_t index) : H_out(p.H_out()), W_out(p.W_out()) {
    const int64_t rows = (H_out + 3) / 4, columns = (W_out + 3) / 4;
    n = index / (rows * columns);
    y = index / columns % rows * 4;
    x = index % columns * 4;
  }
};

// Strides between the planes of transformed tiles, products and weights, in floats. NOTE: the extra elements avoid
// powers of two, at which all planes would map to the same cache set.
inline int64_t input_plane_stride(const RepConvParams& p, int64_t tiles) {
  return tiles * ((p.C + L - 1) / L * L) + 16;
}
inline int64_t output_plane_stride(int64_t tiles) { return tiles * kPanel + 16; }
inline int64_t weight_plane_stride(int64_t C) { return C * kPanel + 32; }
// Floats for a pixel of zeros, rounded up to whole cache lines.
inline int64_t zeros_size(const RepConvParams& p) { return (p.C + 15) / 16 * 16; }

template <typename Scheme>
int64_t tiles_per_block(const RepConvParams& p) {
  const int64_t tiles = kBlockBytes / (kPlanes<Scheme> * 4 * ((p.C + L - 1) / L * L));
  return tiles < 24 ? 24 : tiles > 96 ? 96 : tiles;
}

// The scratch memory holds, in this order: a pixel of zeros, the transformed tiles, the products of one panel, 12 of
// the panel's 36 transformed weights, and the positions of the tiles.
template <typename Scheme>
int64_t scratch_size(const RepConvParams& p, int64_t tiles) {
  const int64_t planes = kPlanes<Scheme> * (input_plane_stride(p, tiles) + output_plane_stride(tiles));
  return 4 * (zeros_size(p) + planes + 12 * weight_plane_stride(p.C)) + tiles * int64_t(sizeof(WinogradTile));
}

// The rows of the transformed weights that are computed together. At stride 1, rows 1 and 2 share subexpressions, and
// so do rows 3 and 4.
constexpr int kPairs[3][2] = {{0, 5}, {1, 2}, {3, 4}};

// Transforms one panel of weights [9][C][kPanel] to two rows of G w G^T: transformed[12][C][kPanel], planes
// weight_plane_stride() apart.
template <typename Scheme, int kPair>
void transform_weights(const float* weight, int64_t C, float* transformed) {
  for (int64_t c = 0; c < C; ++c)
#pragma GCC unroll 2
    for (int64_t lane = 0; lane < kPanel; lane += L) {
      F rows[2][3];
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        F w[3], column[6];
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) w[i] = load(weight + ((3 * i + j) * C + c) * kPanel + lane);
        Scheme::transform_weight_1d(w, column);
        rows[0][j] = column[kPairs[kPair][0]];
        rows[1][j] = column[kPairs[kPair][1]];
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        F t[6];
        Scheme::transform_weight_1d(rows[i], t);
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) store(transformed + (6 * i + j) * weight_plane_stride(C) + c * kPanel + lane, t[j]);
      }
    }
}

// Transforms the input pixels of a tile: transformed[planes][C] = B^T d B.
template <typename Scheme, typename T>
void transform_input(
    const RepConvParams& p, const ImageView& input, const WinogradTile& tile, const T* zeros, float* transformed,
    int64_t plane_stride) {
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
      Scheme::transform_input_1d(d, columns[j]);
    }
#pragma GCC unroll 9
    for (int i = 0; i < S; ++i) {
      F d[S], t[S];
#pragma GCC unroll 9
      for (int j = 0; j < S; ++j) d[j] = columns[j][i];
      Scheme::transform_input_1d(d, t);
#pragma GCC unroll 9
      for (int j = 0; j < S; ++j) store(transformed + (S * i + j) * plane_stride + c, t[j]);
    }
  }
}

// The inverse transform for one vector of channels of a tile: writes relu(A^T m A + bias). The products m are
// `plane_stride` apart.
template <typename Scheme, typename T>
DANET_INLINE void transform_output(
    const RepConvParams& p, const float* products, int64_t plane_stride, F bias, const WinogradTile& tile,
    const ImageView& out, int64_t o) {
  constexpr int S = Scheme::kSide;
  F columns[S][4];
#pragma GCC unroll 9
  for (int j = 0; j < S; ++j) {
    F m[S];
#pragma GCC unroll 9
    for (int i = 0; i < S; ++i) m[i] = load(products + (S * i + j) * plane_stride);
    Scheme::transform_output_1d(m, columns[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (tile.y + i >= tile.H_out) break;
    F m[S], y[4];
#pragma GCC unroll 9
    for (int j = 0; j < S; ++j) m[j] = columns[j][i];
    Scheme::transform_output_1d(m, y);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      if (tile.x + j >= tile.W_out) break;
      F result = y[j] + bias;
      if (p.relu) result = clamp_min(result, 0.0f);
      T* pixel = out.pixel<T>(tile.n, (tile.y + i) * tile.W_out + tile.x + j) + o;
      o + L <= p.C_out ? store(pixel, result) : store_first(pixel, result, p.C_out - o);
    }
  }
}

// Prefetches the weights of the next panel into the L2 cache: one 36th of them during the product of each plane, which
// spreads the memory traffic evenly. At stride 2, with 81 planes, each part is prefetched two or three times.
struct PanelPrefetch {
  const float* weight;

  PanelPrefetch(const float* panel, int plane, int64_t C) : weight(panel + (9 * C + plane % 36 * C / 4) * kPanel) {}
  DANET_INLINE void operator()(int64_t c) const { __builtin_prefetch(weight + c * (kPanel / 4), 0, 2); }
};

// The matrix product of one plane: product[tiles][kPanel]. NOTE: not inlined, because the code is large and the same
// for all dtypes and strides.
__attribute__((noinline)) void multiply_plane(
    const float* transformed, int64_t tiles, int64_t stride, const float* weights, int64_t C,
    const PanelPrefetch& prefetch, float* product) {
  multiply_rows(
      transformed, tiles, stride, weights, C, prefetch, [&](int64_t t, F low, F high) __attribute__((always_inline)) {
        store(product + t * kPanel, low);
        store(product + t * kPanel + L, high);
      });
}

// The matrix products of all planes with one panel: products[planes][tiles][kPanel]. The panel's weights are
// transformed into `transformed_weights`, 12 of the 36 at a time.
template <typename Scheme>
void multiply_panel(
    const float* weight, int64_t C, const float* transformed, int64_t tiles, float* transformed_weights,
    float* products) {
  constexpr int S = Scheme::kSide;
  constexpr decltype(&transform_weights<Scheme, 0>) transforms[3] = {
      transform_weights<Scheme, 0>, transform_weights<Scheme, 1>, transform_weights<Scheme, 2>};
  const int64_t C_pad = (C + L - 1) / L * L, input_stride = tiles * C_pad + 16,
                output_stride = output_plane_stride(tiles);
  int count = 0;
  for (int pair = 0; pair < 3; ++pair) {
    // Transform two rows of the weights, then multiply the planes that use them
    transforms[pair](weight, C, transformed_weights);
    for (int i = 0; i < S; ++i) {
      const int row = Scheme::weight_index(i), slot = row == kPairs[pair][0] ? 0 : row == kPairs[pair][1] ? 1 : -1;
      for (int j = 0; slot >= 0 && j < S; ++j) {
        const int64_t k = S * i + j;
        multiply_plane(
            transformed + k * input_stride, tiles, C_pad,
            transformed_weights + (6 * slot + Scheme::weight_index(j)) * weight_plane_stride(C), C,
            PanelPrefetch(weight, count++, C), products + k * output_stride);
      }
    }
  }
}

template <typename Scheme, typename T>
void forward(
    const RepConvParams& p, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
    int64_t end, int64_t first, int64_t last, char* scratch) {
  const int64_t tiles = end - begin, C_pad = (p.C + L - 1) / L * L;
  const int64_t input_stride = input_plane_stride(p, tiles), output_stride = output_plane_stride(tiles);
  T* zeros = reinterpret_cast<T*>(scratch);
  float* transformed = reinterpret_cast<float*>(scratch) + zeros_size(p);
  float* products = transformed + kPlanes<Scheme> * input_stride;
  float* transformed_weights = products + kPlanes<Scheme> * output_stride;
  WinogradTile* const positions = reinterpret_cast<WinogradTile*>(transformed_weights + 12 * weight_plane_stride(p.C));
  // Transform the input tiles
  std::memset(scratch, 0, size_t(p.C) * sizeof(T));
  for (int64_t t = 0; t < tiles; ++t) {
    positions[t] = WinogradTile(p, begin + t);
    transform_input<Scheme>(p, input, positions[t], zeros, transformed + t * C_pad, input_stride);
  }

  for (int64_t panel = first; panel < last; ++panel) {
    // Multiply with one panel of output channels
    multiply_panel<Scheme>(prepared + panel * 9 * p.C * kPanel, p.C, transformed, tiles, transformed_weights, products);
    // Transform back, add bias and ReLU, and write the output
    for (int64_t o = panel * kPanel; o < p.C_out && o < (panel + 1) * kPanel; o += L) {
      F b{};
      if (bias != nullptr) {
        const T* values = static_cast<const T*>(bias) + o;
        b = o + L <= p.C_out ? load(values) : load_first(values, p.C_out - o);
      }
      for (int64_t t = 0; t < tiles; ++t)
        transform_output<Scheme, T>(p, products + t * kPanel + o % kPanel, output_stride, b, positions[t], out, o);
    }
  }
}

template <typename Scheme, typename T>
constexpr WinogradKernels kWinograd = {tiles_per_block<Scheme>, scratch_size<Scheme>, forward<Scheme, T>};

}  // namespace
}  // namespace danet
