// The taps of SDC on CUDA devices: what a thread prepares of an item in shared memory before its block shares the channels.
//
// An item is a group of channels of one output pixel; items are numbered pixel * G + g, so that out is [items, D], D = C/G.
#pragma once

#include "../common/ptx.cuh"
#include "sdc.h"

namespace danet {
namespace {

constexpr int kThreads = 128;
constexpr int kItems = 64;  // of a block, each prepared by a thread; fewer where their taps would not fit

// Where one tap samples: the cell's top left pixel and which of its corners lie inside the image.
struct Place {
  int32_t pixel;     // y * W + x, perhaps outside; 0 where all corners are
  uint32_t present;  // bit `corner`
};

template <typename A>
struct Sample {
  A y, x;  // in the cell, 0 to 1
  Place place;
  int32_t row;
  bool is_nan;
};

// The sample of the tap with these places along its two axes, which is (y, x), or (x, y) where x_first, as its two offsets
// are; the pixel's window begins at (start_y, start_x). See sdc.h.
template <typename A>
GPU_DEVICE Sample<A> locate(
    const SdcParams& p, bool x_first, int outer, int inner, A start_y, A start_x, A first, A second) {
  const A scale = A(p.offset_scale);
  const auto coordinate = [&](int axis, int side, A start, A offset) {
    const int d = int(p.dilation[axis]), centre = d * int(p.kernel_size[axis] - 1) / 2;
    return (scale * A(side * d - centre) + start) + scale * offset;
  };
  const A y = x_first ? coordinate(0, inner, start_y, second) : coordinate(0, outer, start_y, first);
  const A x = x_first ? coordinate(1, outer, start_x, first) : coordinate(1, inner, start_x, second);
  Sample<A> sample;
  sample.is_nan = y != y || x != x;
  // What no int is as far away is outside of every image as well, and the weights of what is outside must be numbers.
  const int row = gpu::floor_to_int(y), column = gpu::floor_to_int(x);
  sample.y = gpu::saturate(y - A(row)), sample.x = gpu::saturate(x - A(column));
  const uint32_t top = uint32_t(row), left = uint32_t(column), H = uint32_t(p.H), W = uint32_t(p.W);
  const uint32_t rows = (top < H ? 3 : 0) | (top + 1 < H ? 12 : 0);
  const uint32_t columns = (left < W ? 5 : 0) | (left + 1 < W ? 10 : 0);
  const uint32_t present = sample.is_nan ? 0 : rows & columns;
  sample.row = row;
  sample.place = {present > 0 ? int32_t(top * W + left) : 0, present};
  return sample;
}

// For half types the fast one, whose error is far below theirs.
template <typename T>
GPU_DEVICE Compute<T> exponential(Compute<T> a) {
  if constexpr (sizeof(T) == 2)
    return gpu::fast_exp2(a * 1.44269504f);
  else
    return exp(a);
}

// store(k, sample, m) for the taps of one item at output pixel (y, x): offset [K, 2] and mask [K] are its own. With
// kTaps = 9 the window is 3x3, in the order that kXFirst says, pairs of offsets are aligned to their size, and all is in
// registers, of which there are too few to find out about the order there.
template <int kTaps, bool kXFirst, typename T, typename Store>
GPU_DEVICE void prepare_taps(
    const SdcParams& p, const T* __restrict__ offset, const T* __restrict__ mask, int y, int x, const Store& store) {
  using A = Compute<T>;
  const A start_y = A(sdc_start(p, 0)) + A(y * int(p.stride[0]));
  const A start_x = A(sdc_start(p, 1)) + A(x * int(p.stride[1]));
  // A NaN logit is passed over for the largest: exp makes it part of the sum.
  if constexpr (kTaps > 0) {
    static_assert(kTaps == 9);
    gpu::AlignedArray<T, 2> pairs[kTaps];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) pairs[k] = gpu::load<2>(offset + 2 * k);
    A m[kTaps], factor = 1;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) m[k] = gpu::to_compute(mask[k]);
    if (p.softmax) {
      A top = m[0], sum = 0;
#pragma unroll
      for (int k = 1; k < kTaps; ++k) top = max(top, m[k]);
#pragma unroll
      for (int k = 0; k < kTaps; ++k) sum += m[k] = exponential<T>(m[k] - top);
      factor = 1 / sum;
    }
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const auto pair = gpu::to_compute(pairs[k]);
      store(k, locate<A>(p, kXFirst, k / 3, k % 3, start_y, start_x, pair.values[0], pair.values[1]), m[k] * factor);
    }
  } else {
    const int K = int(p.K), inner = int(p.kernel_size[p.x_first ? 0 : 1]);
    A top = 0, factor = 1;
    if (p.softmax) {
      A sum = 0;
      top = gpu::to_compute(mask[0]);
      for (int k = 1; k < K; ++k) top = max(top, gpu::to_compute(mask[k]));
      for (int k = 0; k < K; ++k) sum += exponential<T>(gpu::to_compute(mask[k]) - top);
      factor = 1 / sum;
    }
    for (int k = 0; k < K; ++k) {
      const int tap = k + (p.remove_center && k >= K / 2 ? 1 : 0);
      const A m = gpu::to_compute(mask[k]);
      store(
          k,
          locate<A>(
              p, p.x_first, tap / inner, tap % inner, start_y, start_x, gpu::to_compute(offset[2 * k]),
              gpu::to_compute(offset[2 * k + 1])),
          p.softmax ? exponential<T>(m - top) * factor : m);
    }
  }
}

// What item number `item` is. Index: int32_t where all numbers fit it, for its divisions and products are far cheaper.
template <typename Index>
struct Item {
  Index n, i, g;  // i = y * W_out + x
  int y, x;

  GPU_DEVICE Item(const SdcParams& p, Index item) {
    using Number = std::make_unsigned_t<Index>;  // whose division is shorter
    const Number G = Number(p.G), P = Number(p.H_out * p.W_out), W = Number(p.W_out), pixel = Number(item) / G;
    g = Index(Number(item) - pixel * G);
    n = Index(pixel / P), i = Index(pixel - Number(n) * P);
    y = int(Number(i) / W), x = int(Number(i) - Number(y) * W);
  }
};

template <typename A>
struct alignas(4 * sizeof(A)) Corners {
  A weight[4];
};

}  // namespace
}  // namespace danet
