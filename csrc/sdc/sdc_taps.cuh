// Prepares the taps of SDC (sdc.h) on CUDA devices. The work is divided into items: an item is one group of channels of
// one output pixel. One thread prepares all taps of an item in shared memory; then the threads of the block share its
// channels.
//
// Items are numbered pixel * G + g. A block of the forward kernel takes the items of a rectangle of output pixels
// instead of successive items, because neighboring pixels sample the same input; forward_kernel describes their order.
//
// In the templates, T is the dtype of the tensors, and A = Compute<T> is the type of the arithmetic.
#pragma once

#include "../common/ptx.cuh"
#include "sdc.h"

namespace danet {
namespace {

constexpr int kLog2Threads = 7, kThreads = 1 << kLog2Threads;
// The maximum number of items per block, one for each thread, so that all warps prepare taps. A block has fewer items
// if their taps exceed the shared memory.
constexpr int kMaxItems = kThreads;

// Sets of a cell's corners, as bit masks: bit 0 is the top left corner, then top right, bottom left, bottom right.
constexpr uint32_t kTopCorners = 3, kBottomCorners = 12, kLeftCorners = 5, kRightCorners = 10;

// The cell that one tap samples.
struct SampledCell {
  int32_t top_left;         // y * W + x of the top left corner, which may lie outside; 0 if all corners lie outside
  uint32_t corners_inside;  // the set of corners inside the image
};

// Where the taps of an output pixel lie; computed on the host, so that the kernels convert and multiply less. Pairs are
// (y, x). With the names of the formula in sdc.h, on each axis: first_tap = -scale * h, tap_step = scale * d. Tap j of
// that axis (k_y or k_x) lies at first_tap + j * tap_step from the center of the window. `center` is the center of the
// window of output pixel (0, 0).
template <typename A>
struct SamplingGrid {
  A scale, first_tap[2], tap_step[2];
  int32_t center[2], stride[2], H, W, K;
  int32_t inner_size;  // taps of the inner axis, on which consecutive taps are neighbors
  bool x_first, remove_center, softmax;

  explicit SamplingGrid(const SdcParams& p)
      : scale(A(p.offset_scale)), H(int32_t(p.H)), W(int32_t(p.W)), K(int32_t(p.K)),
        inner_size(int32_t(p.kernel_size[p.x_first ? 0 : 1])), x_first(p.x_first), remove_center(p.remove_center),
        softmax(p.softmax) {
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t half = p.dilation[axis] * (p.kernel_size[axis] - 1) / 2;
      first_tap[axis] = A(-p.offset_scale * double(half));
      tap_step[axis] = A(p.offset_scale * double(p.dilation[axis]));
      center[axis] = int32_t(sdc_center(p, axis)), stride[axis] = int32_t(p.stride[axis]);
    }
  }
};

// One sample of the image.
template <typename A>
struct Sample {
  A y, x;
  A fraction_y, fraction_x;  // position in the cell, 0 to 1
  SampledCell cell;
  int32_t row, column;  // of the top left corner
  bool is_nan;
};

// Locates the sample at (y, x) of an image with H rows and W columns.
template <typename A>
GPU_DEVICE Sample<A> sample_at(A y, A x, uint32_t H, uint32_t W) {
  Sample<A> sample;
  sample.y = y, sample.x = x, sample.is_nan = y != y || x != x;
  // floor_to_int saturates, so that far coordinates stay outside; clamp the fractions so that unused weights stay
  // finite.
  const int row = gpu::floor_to_int(y), column = gpu::floor_to_int(x);
  sample.fraction_y = gpu::saturate(y - A(row)), sample.fraction_x = gpu::saturate(x - A(column));
  // Find the corners inside the image. As unsigned integers, negative indices lie outside.
  const uint32_t top = uint32_t(row), left = uint32_t(column);
  const uint32_t in_valid_rows = (top < H ? kTopCorners : 0) | (top + 1 < H ? kBottomCorners : 0);
  const uint32_t in_valid_columns = (left < W ? kLeftCorners : 0) | (left + 1 < W ? kRightCorners : 0);
  const uint32_t corners_inside = sample.is_nan ? 0 : in_valid_rows & in_valid_columns;
  sample.row = row, sample.column = column;
  sample.cell = {corners_inside > 0 ? int32_t(top * W + left) : 0, corners_inside};
  return sample;
}

// Locates the sample of tap (outer, inner) with the offsets (first, second), for an output pixel whose window has its
// center at (center_y, center_x). The tap and the offsets are (y, x), or (x, y) if x_first.
template <typename A>
GPU_DEVICE Sample<A> locate_sample(
    const SamplingGrid<A>& s, bool x_first, int outer, int inner, A center_y, A center_x, A first, A second) {
  const auto coordinate = [&](int axis, int k_axis, A center, A offset) {
    return (s.first_tap[axis] + A(k_axis) * s.tap_step[axis] + center) + s.scale * offset;
  };
  const A y = x_first ? coordinate(0, inner, center_y, second) : coordinate(0, outer, center_y, first);
  const A x = x_first ? coordinate(1, outer, center_x, first) : coordinate(1, inner, center_x, second);
  Sample<A> sample = sample_at(y, x, uint32_t(s.H), uint32_t(s.W));
  // DCNv3 and DCNv4 ignore samples at -1, whose offsets have gradients in sdc.
  if (x_first && (y <= -1 || x <= -1)) sample.cell = {0, 0};
  return sample;
}

// 1 / a. Half dtypes use the fast approximation, whose error is far below their precision.
template <typename T>
GPU_DEVICE Compute<T> reciprocal(Compute<T> a) {
  if constexpr (sizeof(T) == 2)
    return gpu::fast_reciprocal(a);
  else
    return 1 / a;
}

// Loads an odd number of units of kUnit values from global memory. One aligned load reads two units, which halves the
// requests to the L1 cache. The unit without a partner is the first or the last one, depending on the address.
template <int kUnit, typename T, int kValues>
GPU_DEVICE void load_in_pairs(const T* from, Compute<T> (&values)[kValues]) {
  constexpr int kUnits = kValues / kUnit;
  static_assert(kUnits % 2 == 1);
  const bool first_is_single = reinterpret_cast<uintptr_t>(from) % (2 * kUnit * sizeof(T)) != 0;
  const auto single = gpu::load<kUnit>(from + (first_is_single ? 0 : (kUnits - 1) * kUnit));
  const T* pairs = from + (first_is_single ? kUnit : 0);
  gpu::AlignedArray<T, kUnit> before = single, current = single, next = single;
#pragma unroll
  for (int k = 0; k < kUnits; ++k) {
    // `current` is unit k if the last unit is single, and unit k + 1 if the first one is.
    if (k == kUnits - 1) {
      current = single;
    } else if (k % 2 == 0) {
      const auto pair = gpu::load_constant<2 * kUnit>(pairs + k * kUnit);
      memcpy(&current, &pair.values[0], sizeof current), memcpy(&next, &pair.values[kUnit], sizeof next);
    } else {
      current = next;
    }
#pragma unroll
    for (int v = 0; v < kUnit; ++v)
      values[k * kUnit + v] = gpu::to_compute(first_is_single ? before.values[v] : current.values[v]);
    before = current;
  }
}

// The offsets and the mask of the nine taps of one item.
template <typename A>
struct ItemInputs {
  A offsets[18], m[9];
};

// Loads offset and mask of an item from global or shared memory. The two offsets of a tap are loaded at once, except
// for kXFirst: in DCNv4's joint tensor they are not aligned.
template <bool kXFirst, typename T>
GPU_DEVICE ItemInputs<Compute<T>> load_item(const T* __restrict__ offset, const T* __restrict__ mask) {
  ItemInputs<Compute<T>> item;
#pragma unroll
  for (int k = 0; k < 9; ++k) {
    gpu::AlignedArray<T, 2> pair;
    if constexpr (kXFirst)
      pair.values[0] = offset[2 * k], pair.values[1] = offset[2 * k + 1];
    else
      pair = gpu::load<2>(offset + 2 * k);
    const auto converted = gpu::to_compute(pair);
    item.offsets[2 * k] = converted.values[0], item.offsets[2 * k + 1] = converted.values[1];
  }
#pragma unroll
  for (int k = 0; k < 9; ++k) item.m[k] = gpu::to_compute(mask[k]);
  return item;
}

// Loads offset and mask of an item from global memory with load_in_pairs.
template <bool kXFirst, typename T>
GPU_DEVICE ItemInputs<Compute<T>> load_item_in_pairs(const T* __restrict__ offset, const T* __restrict__ mask) {
  using A = Compute<T>;
  ItemInputs<A> item;
  if constexpr (kXFirst) {
    A first[9], second[9];
    load_in_pairs<1>(offset, first), load_in_pairs<1>(offset + 9, second);
#pragma unroll
    for (int j = 0; j < 9; ++j) item.offsets[j] = first[j], item.offsets[9 + j] = second[j];
  } else {
    load_in_pairs<2>(offset, item.offsets);
  }
  load_in_pairs<1>(mask, item.m);
  return item;
}

// Calls store(k, sample, m) for the taps of one item at output pixel (y, x). The tap order kXFirst is a template
// parameter, because nvcc would spill registers at a run-time branch.
template <bool kXFirst, typename T, typename Store>
GPU_DEVICE void prepare_nine_taps(
    const SamplingGrid<Compute<T>>& s, ItemInputs<Compute<T>> item, int y, int x, const Store& store) {
  using A = Compute<T>;
  const A center_y = A(s.center[0] + y * s.stride[0]), center_x = A(s.center[1] + x * s.stride[1]);
  // Compute the numerators of the softmax and the reciprocal of its denominator. The maximum skips NaN logits; exp
  // carries them into the sum.
  A factor = 1;
  if (s.softmax) {
    A top = item.m[0], sum = 0;
#pragma unroll
    for (int k = 1; k < 9; ++k) top = max(top, item.m[k]);
#pragma unroll
    for (int k = 0; k < 9; ++k) sum += item.m[k] = gpu::exponential<T>(item.m[k] - top);
    factor = reciprocal<T>(sum);
  }
  // Locate the samples.
#pragma unroll
  for (int k = 0; k < 9; ++k)
    store(
        k, locate_sample<A>(s, kXFirst, k / 3, k % 3, center_y, center_x, item.offsets[2 * k], item.offsets[2 * k + 1]),
        item.m[k] * factor);
}

// Calls store(k, sample, m) for the taps of one item at output pixel (y, x), with offset [K, 2] and mask [K] of the
// item. kTaps == 9 selects the fully unrolled fast path for 3x3 windows, in the tap order kXFirst. kTaps == 0 computes
// any window.
template <int kTaps, bool kXFirst, typename T, typename Store>
GPU_DEVICE void prepare_taps(
    const SamplingGrid<Compute<T>>& s, const T* __restrict__ offset, const T* __restrict__ mask, int y, int x,
    const Store& store) {
  using A = Compute<T>;
  if constexpr (kTaps > 0) {
    static_assert(kTaps == 9);
    prepare_nine_taps<kXFirst, T>(s, load_item<kXFirst>(offset, mask), y, x, store);
  } else {
    const A center_y = A(s.center[0] + y * s.stride[0]), center_x = A(s.center[1] + x * s.stride[1]);
    const int K = s.K, inner_size = s.inner_size;
    // Compute the maximum of the logits and the reciprocal of the softmax's denominator. The maximum skips NaN logits;
    // exp carries them into the sum.
    A top = 0, factor = 1;
    if (s.softmax) {
      A sum = 0;
      top = gpu::to_compute(mask[0]);
      for (int k = 1; k < K; ++k) top = max(top, gpu::to_compute(mask[k]));
      for (int k = 0; k < K; ++k) sum += gpu::exponential<T>(gpu::to_compute(mask[k]) - top);
      factor = reciprocal<T>(sum);
    }
    // Compute the weights and locate the samples.
    for (int k = 0; k < K; ++k) {
      const int tap = k + (s.remove_center && k >= K / 2 ? 1 : 0);
      const A m = gpu::to_compute(mask[k]);
      store(
          k,
          locate_sample<A>(
              s, s.x_first, tap / inner_size, tap % inner_size, center_y, center_x, gpu::to_compute(offset[2 * k]),
              gpu::to_compute(offset[2 * k + 1])),
          s.softmax ? gpu::exponential<T>(m - top) * factor : m);
    }
  }
}

// The position of an item in out. Index is int32_t if all indices fit, because its divisions and products are far
// cheaper than those of int64_t.
template <typename Index>
struct OutputItem {
  Index n, i, g;  // image, pixel i = y * W_out + x, and group
  int y, x;

  GPU_DEVICE OutputItem(const SdcParams& p, Index item) {
    using Unsigned = std::make_unsigned_t<Index>;  // unsigned division is shorter
    const Unsigned G = Unsigned(p.G), P = Unsigned(p.H_out * p.W_out), W = Unsigned(p.W_out),
                   pixel = Unsigned(item) / G;
    g = Index(Unsigned(item) - pixel * G);
    n = Index(pixel / P), i = Index(pixel - Unsigned(n) * P);
    y = int(Unsigned(i) / W), x = int(Unsigned(i) - Unsigned(y) * W);
  }
};

// Bilinear weights of a cell's corners, times m.
template <typename A>
struct alignas(4 * sizeof(A)) CornerWeights {
  A weight[4];
};

}  // namespace
}  // namespace danet
