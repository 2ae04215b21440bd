// The CPU kernels of rep_conv for few channels, such as in the first and last layers of a detector. There, neither
// Winograd's transforms nor oneDNN's blocks of 16 channels are efficient.
#pragma once

#include "../common/lanes.h"
#include "../common/matrix.h"
#include "../common/vec_math.h"
#include "rep_conv.h"

namespace danet {
namespace {

// Pointers to the nine input pixels of an output pixel's window. Pixels outside the image have the pointer `outside`.
template <typename T>
struct WindowPixels {
  const T* pixels[9];

  DANET_INLINE WindowPixels(
      const RepConvParams& p, const ImageView& input, int64_t n, int64_t y, int64_t x, const T* outside) {
    const int64_t top = y * p.stride - 1, left = x * p.stride - 1;
    if (top >= 0 && top + 2 < p.H && left >= 0 && left + 2 < p.W) {
      const T* corner = input.pixel<T>(n, top * p.W + left);
      for (int k = 0; k < 9; ++k) pixels[k] = corner + (k / 3 * p.W + k % 3) * input.pixel_stride;
    } else {
      set_at_border(p, input, n, top, left, outside);
    }
  }

 private:
  __attribute__((noinline)) void set_at_border(
      const RepConvParams& p, const ImageView& input, int64_t n, int64_t top, int64_t left, const T* outside) {
    for (int64_t k = 0; k < 9; ++k) {
      const int64_t row = top + k / 3, column = left + k % 3;
      const bool inside = row >= 0 && row < p.H && column >= 0 && column < p.W;
      pixels[k] = inside ? input.pixel<T>(n, row * p.W + column) : outside;
    }
  }
};

// Computes four neighbouring pixels of kOut channels: an input value is loaded once for all channels, a weight once for
// all pixels.
template <int kOut, typename T>
DANET_INLINE void few_outputs_at(
    const RepConvParams& p, const WindowPixels<T> (&windows)[4], const float* weight, const void* bias,
    const ImageView& out, int64_t n, int64_t i, int64_t count) {
  constexpr int L = kLanes<float>;
  // Accumulate the products of all taps, vectorized over the input channels
  F sums[kOut][4] = {};
  const int64_t whole = p.C / L * L, filter_size = 9 * p.C;
  for (int64_t k = 0; k < 9; ++k, weight += p.C) {
    const T* x0 = windows[0].pixels[k];
    const T* x1 = windows[1].pixels[k];
    const T* x2 = windows[2].pixels[k];
    const T* x3 = windows[3].pixels[k];
    const auto add = [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const F x[4] = {
          load_channels(x0 + c, lanes), load_channels(x1 + c, lanes), load_channels(x2 + c, lanes),
          load_channels(x3 + c, lanes)};
#pragma GCC unroll 8
      for (int o = 0; o < kOut; ++o) {
        const F w = load_channels(weight + o * filter_size + c, lanes);
#pragma GCC unroll 4
        for (int pixel = 0; pixel < 4; ++pixel) sums[o][pixel] += x[pixel] * w;
      }
    };
    for (int64_t c = 0; c < whole; c += L) add(c, 0);
    if (whole < p.C) add(whole, int(p.C - whole));
  }
  // Reduce over the channels, add bias and ReLU, and write back
#pragma GCC unroll 8
  for (int o = 0; o < kOut; ++o) {
    const Vec4<float> sum = sum_lanes<float>(sums[o][0], sums[o][1], sums[o][2], sums[o][3]);
    const float b = bias == nullptr ? 0 : to_compute(static_cast<const T*>(bias)[o]);
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      const float value = sum[pixel] + b;
      out.pixel<T>(n, i + pixel)[o] = from_compute<T>(p.relu && value < 0 ? 0 : value);
    }
  }
}

template <int kOut, typename T>
void few_outputs_of(
    const RepConvParams& p, const ImageView& input, const float* weight, const void* bias, const ImageView& out,
    const T* zeros, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.H, y = row - n * p.H;
    for (int64_t x = 0; x < p.W; x += 4) {
      const WindowPixels<T> windows[4] = {
          {p, input, n, y, x, zeros},
          {p, input, n, y, x + 1, zeros},
          {p, input, n, y, x + 2, zeros},
          {p, input, n, y, x + 3, zeros}};
      few_outputs_at<kOut>(p, windows, weight, bias, out, n, y * p.W + x, p.W - x < 4 ? p.W - x : 4);
    }
  }
}

template <typename T>
void few_outputs(
    const RepConvParams& p, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
    int64_t end) {
  alignas(64) T zeros[kFewOutputsMaxChannels] = {};
  auto run = [&](auto count) { few_outputs_of<count()>(p, input, prepared, bias, out, zeros, begin, end); };
  switch (p.C_out) {
    case 1: return run(std::integral_constant<int, 1>{});
    case 2: return run(std::integral_constant<int, 2>{});
    case 3: return run(std::integral_constant<int, 3>{});
    case 4: return run(std::integral_constant<int, 4>{});
    case 5: return run(std::integral_constant<int, 5>{});
    case 6: return run(std::integral_constant<int, 6>{});
    default: return run(std::integral_constant<int, 7>{});
  }
}

// Calls finish(r, low, high) with the sums over the windows of kMaxRows pixels. taps[k] points to the values of tap k
// of the first pixel; those of the next pixel are `step` elements later.
template <typename Finish>
DANET_INLINE void multiply_windows(
    const float* const (&taps)[9], int64_t step, const float* weight, int64_t C, const Finish& finish) {
  F sum[kMaxRows][2] = {};
  for (int k = 0; k < 9; ++k)
    for (int64_t c = 0; c < C; ++c, weight += kPanel) {
      // Load the weights of one tap and channel, and multiply them with every pixel
      const F w0 = load(weight), w1 = load(weight + kLanes<float>);
#pragma GCC unroll 12
      for (int r = 0; r < kMaxRows; ++r) {
        const F value = broadcast<float>(taps[k][r * step + c]);
        sum[r][0] += value * w0;
        sum[r][1] += value * w1;
      }
    }
#pragma GCC unroll 12
  for (int r = 0; r < kMaxRows; ++r) finish(r, sum[r][0], sum[r][1]);
}

// The bias of a vector of channels of which at most `count` exist; zero without bias.
template <typename T>
DANET_INLINE F load_bias(const void* bias, int64_t channel, int64_t count) {
  if (bias == nullptr || count <= 0) return F{};
  return load_channels(static_cast<const T*>(bias) + channel, count >= kLanes<float> ? 0 : int(count));
}

// The number of pixels in each of the three rows that few_inputs copies.
DANET_INLINE int64_t copied_pixels(const RepConvParams& p) {
  return ((p.W_out() + kMaxRows - 1) / kMaxRows * kMaxRows - 1) * p.stride + 3;
}
inline int64_t few_inputs_scratch(const RepConvParams& p) { return 3 * copied_pixels(p) * p.C; }

template <typename T, typename Out>
void few_inputs(
    const RepConvParams& p, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
    int64_t end, float* scratch) {
  constexpr int L = kLanes<float>;
  const int64_t K = 9 * p.C, H_out = p.H_out(), W_out = p.W_out(), row_size = copied_pixels(p) * p.C;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / H_out, y = row - n * H_out;
    // Copy the three input rows in float32, with zeros outside the image, so that no pixel needs a special case
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t from_row = y * p.stride - 1 + i;
      float* to = scratch + i * row_size;
      std::memset(to, 0, size_t(row_size) * sizeof(float));
      if (from_row < 0 || from_row >= p.H) continue;
      // The copy begins with column -1, and ends where its size ends or the image does.
      const int64_t last = row_size / p.C - 1, columns = p.W < last ? p.W : last;
      if (input.pixel_stride == p.C) {
        const T* from = input.pixel<T>(n, from_row * p.W);
        for_vectors_of<float>(columns * p.C, [&](int64_t c, int lanes) __attribute__((always_inline)) {
          store_channels(to + p.C + c, load_channels(from + c, lanes), lanes);
        });
        continue;
      }
      for (int64_t x = 0; x < columns; ++x)
        for (int64_t c = 0; c < p.C; ++c) to[(x + 1) * p.C + c] = to_compute(input.pixel<T>(n, from_row * p.W + x)[c]);
    }
    for (int64_t x = 0; x < W_out; x += kMaxRows) {
      const int64_t count = W_out - x < kMaxRows ? W_out - x : kMaxRows;
      const float* taps[9];
      for (int k = 0; k < 9; ++k) taps[k] = scratch + k / 3 * row_size + (x * p.stride + k % 3) * p.C;
      // Multiply with every panel of output channels, add bias and ReLU, and write back
      Out* pixels = out.pixel<Out>(n, y * W_out + x);
      const int64_t pixel_stride = out.pixel_stride;
      const float low_limit = p.relu ? 0.0f : -__builtin_inff();
      for (int64_t o = 0; o < p.C_out; o += kPanel) {
        const int64_t channels = p.C_out - o;
        // In memory, because the sums need all registers.
        alignas(64) float biases[kPanel];
        store(biases, load_bias<T>(bias, o, channels));
        store(biases + L, load_bias<T>(bias, o + L, channels - L));
        const bool is_whole = channels >= kPanel && count == kMaxRows;
        multiply_windows(
            taps, p.stride * p.C, prepared + o * K, p.C, [&](int64_t r, F low, F high) __attribute__((always_inline)) {
              const float* b = opaque_pointer(static_cast<const float*>(biases));
              low = clamp_min(low + load(b), low_limit);
              high = clamp_min(high + load(b + L), low_limit);
              Out* pixel = pixels + r * pixel_stride + o;
              if (is_whole) {
                store(pixel, low);
                store(pixel + L, high);
              } else if (r < count) {
                store_up_to(pixel, low, channels);
                store_up_to(pixel + L, high, channels - L);
              }
            });
      }
    }
  }
}

}  // namespace
}  // namespace danet
