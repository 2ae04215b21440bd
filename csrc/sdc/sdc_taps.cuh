// The taps of SDC on CUDA devices: what a thread prepares of an item in shared memory before its block shares the channels.
//
// An item is a group of channels of one output pixel; items are numbered pixel * G + g, so that out is [items, D], D = C/G.
#pragma once

#include "../common/gpu.cuh"
#include "sdc.h"

namespace danet {
namespace {

constexpr int kThreads = 128;

// Where one tap samples: the cell's top left pixel and which of its corners lie inside the image.
struct Place {
  int32_t pixel;     // y * W + x; what it means outside is not used
  uint32_t present;  // bit `corner`
};

template <typename A>
struct Sample {
  A y, x;  // in the cell, 0 to 1
  Place place;
  int32_t row;
  bool is_nan;
};

// The sample of tap (tap_y, tap_x) of the pixel whose window begins at (start_y, start_x); see sdc.h.
template <typename A>
GPU_DEVICE Sample<A> locate(const SdcParams& p, int tap_y, int tap_x, A start_y, A start_x, A dy, A dx) {
  const A scale = A(p.offset_scale);
  const int d_y = int(p.dilation[0]), d_x = int(p.dilation[1]);
  const int centre_y = d_y * int(p.kernel_size[0] - 1) / 2, centre_x = d_x * int(p.kernel_size[1] - 1) / 2;
  A y = (scale * A(tap_y * d_y - centre_y) + start_y) + scale * dy;
  A x = (scale * A(tap_x * d_x - centre_x) + start_x) + scale * dx;
  Sample<A> sample;
  sample.is_nan = y != y || x != x;
  // Far away is as good as just outside; a NaN fails the comparisons and goes there too.
  const bool near = y >= A(-2) && y <= A(p.H) && x >= A(-2) && x <= A(p.W);
  if (!near) y = x = A(-2);
  const A floor_y = floor(y), floor_x = floor(x);
  sample.y = y - floor_y, sample.x = x - floor_x;
  const int row = int(floor_y), column = int(floor_x), H = int(p.H), W = int(p.W);
  const bool top = row >= 0 && row < H, bottom = row + 1 >= 0 && row + 1 < H;
  const bool left = column >= 0 && column < W, right = column + 1 >= 0 && column + 1 < W;
  sample.row = row;
  sample.place.pixel = row * W + column;
  sample.place.present = uint32_t(top && left) | uint32_t(top && right) << 1 | uint32_t(bottom && left) << 2 |
                         uint32_t(bottom && right) << 3;
  return sample;
}

// store(k, sample, m) for the taps of one item at output pixel (y, x): offset [K, 2] and mask [K] are its own. With kTaps =
// 9 the window is 3x3 and all is in registers.
template <int kTaps, typename T, typename Store>
GPU_DEVICE void prepare_taps(
    const SdcParams& p, const T* __restrict__ offset, const T* __restrict__ mask, int64_t y, int64_t x,
    const Store& store) {
  using A = Compute<T>;
  const int K = kTaps > 0 ? kTaps : int(p.K), columns = kTaps > 0 ? 3 : int(p.kernel_size[1]);
  const A start_y = A(sdc_start(p, 0)) + A(y * p.stride[0]), start_x = A(sdc_start(p, 1)) + A(x * p.stride[1]);
  A logits[kTaps > 0 ? kTaps : 1];
  if (kTaps > 0) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) logits[k] = gpu::to_compute(mask[k]);
  }
  auto logit = [&](int k) { return kTaps > 0 ? logits[kTaps > 0 ? k : 0] : gpu::to_compute(mask[k]); };
  A top = 0, factor = 1;
  if (p.softmax) {
    top = logit(0);
#pragma unroll(kTaps > 0 ? kTaps : 1)
    for (int k = 1; k < K; ++k) top = logit(k) > top || logit(k) != logit(k) ? logit(k) : top;
    A sum = 0;
#pragma unroll(kTaps > 0 ? kTaps : 1)
    for (int k = 0; k < K; ++k) sum += exp(logit(k) - top);
    factor = 1 / sum;
  }
#pragma unroll(kTaps > 0 ? kTaps : 1)
  for (int k = 0; k < K; ++k) {
    const int tap = k + (p.remove_center && k >= K / 2 ? 1 : 0);
    const Sample<A> sample = locate<A>(
        p, tap / columns, tap % columns, start_y, start_x, gpu::to_compute(offset[2 * k]),
        gpu::to_compute(offset[2 * k + 1]));
    store(k, sample, p.softmax ? exp(logit(k) - top) * factor : logit(k));
  }
}

// What item number `item` is. Index: int32_t where all numbers fit it, for its divisions and products are far cheaper.
template <typename Index>
struct Item {
  Index n, y, x, i, g;  // i = y * W_out + x

  GPU_DEVICE Item(const SdcParams& p, Index item) {
    const Index G = Index(p.G), P = Index(p.H_out * p.W_out), W = Index(p.W_out), pixel = item / G;
    g = item - pixel * G;
    n = pixel / P, i = pixel - n * P;
    y = i / W, x = i - y * W;
  }
};

template <typename A>
struct alignas(4 * sizeof(A)) Corners {
  A weight[4];
};

}  // namespace
}  // namespace danet
