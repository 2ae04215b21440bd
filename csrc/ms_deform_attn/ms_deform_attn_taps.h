// Prepares the taps of one query and head for the CPU kernels of multi-scale deformable attention (ms_deform_attn.h):
// the softmax, the cell that each tap samples, and the weights of the cell's corners. Each vector lane prepares one
// tap.
//
// In the templates of this folder, T is the dtype of value, S that of locations and weights (T or the compute dtype),
// and A = Compute<T> is the type of the arithmetic.
#pragma once

#include "../sdc/sdc_taps.h"
#include "ms_deform_attn.h"

namespace danet {
namespace {

// The taps of one query and head. As in SDC's TapTable, arrays have constant sizes, and a whole vector can be stored at
// any tap.
template <typename A>
struct MsTapTable {
  static constexpr int kCapacity = kMaxTaps + 16;
  alignas(64) A height[kCapacity];  // of the tap's level
  A width[kCapacity];
  int32_t rows[kCapacity], columns[kCapacity];     // the same as integers
  A m[kCapacity];                                  // the attention weight, after the softmax
  A weight[4][kCapacity];                          // weights of the corners, times m
  A fraction_y[kCapacity], fraction_x[kCapacity];  // backward: position in the cell, 0 to 1
  int32_t row[kCapacity], column[kCapacity];       // top left corner of the cell, from -2 to H and -2 to W
  // The nearest cell inside the level, from which all corners can be read; the weights are moved along with the pixels.
  int32_t inside_row[kCapacity], inside_column[kCapacity];
  A dot[4][kCapacity];  // backward: dot products of grad_output and the corners of the cell inside
  A grad_m[kCapacity];  // backward: gradient of m
  int64_t K;            // number of taps

  MsTapTable(const MsDeformAttnParams& p, const MsLevel* levels) : K(p.L * p.P) {
    // Fill the constant columns, rounded up to whole vectors.
    for (int64_t j = 0; j < K + kLanes<A>; ++j) {
      const MsLevel& level = levels[j < K ? j / p.P : p.L - 1];
      rows[j] = level.H, columns[j] = level.W;
      height[j] = A(level.H), width[j] = A(level.W);
    }
  }
};

// Fills taps.m with the attention weights, or with the softmax of the logits.
template <typename A, typename S>
DANET_INLINE void fill_weights(const MsDeformAttnParams& p, MsTapTable<A>& taps, const S* weights) {
  fill_mask(weights, taps.K, taps.K, p.softmax, taps.m);
  if (!p.softmax) return;
  const A factor = 1 / sum_values<0>(taps.m, taps.K);
  for (int64_t j = 0; j < taps.K; j += kLanes<A>) store(taps.m + j, load(taps.m + j) * factor);
}

// The nearest first row or column whose cell lies inside a level of this size; zero if the level has only one.
template <typename A>
DANET_INLINE IntVec<A> nearest_inside(IntVec<A> index, IntVec<A> size) {
  index = index > size - 2 ? size - 2 : index;
  return index < 0 ? IntVec<A>{} : index;
}

// Fills the cells from the locations, and the corner weights from the cells and taps.m. Returns whether all cells lie
// inside their levels. Without kMove, the weights stay at the corners of the original cells.
template <bool kBackward, bool kMove, typename A, typename S>
DANET_INLINE bool fill_cells(MsTapTable<A>& taps, const S* locations) {
  constexpr int L = kLanes<A>;
  const PaddedValues<S, 2 * L> padded(locations, 2 * taps.K);
  Mask<A> any_outside{};
  for_vectors<L>(taps.K < L ? L : taps.K, [&](int64_t j) __attribute__((always_inline)) {
    // Compute the coordinates. Put a NaN into the weights.
    const Vec<A> low = load(padded.values + 2 * j), high = load(padded.values + 2 * j + L);
    const Vec<A> height = load(taps.height + j), width = load(taps.width + j);
    Vec<A> x = multiply_add<A>(pick<EvenLanes>(low, high), width, broadcast<A>(A(-0.5)));
    Vec<A> y = multiply_add<A>(pick<OddLanes>(low, high), height, broadcast<A>(A(-0.5)));
    Vec<A> m = load(taps.m + j);
    if (!kBackward) m = (y != y) | (x != x) ? y + x : m;
    // Move coordinates at -1 and below, or NaN, to -2, and those at the size and above to the size: they are outside.
    y = y > A(-1) ? y : broadcast<A>(-2);
    x = x > A(-1) ? x : broadcast<A>(-2);
    y = y < height ? y : height;
    x = x < width ? x : width;
    // Find the cell, and compute the weights of its corners.
    Vec<A> floor_y, floor_x, weight[4];
    const IntVec<A> row = floor<A>(y, floor_y), column = floor<A>(x, floor_x);
    y -= floor_y;
    x -= floor_x;
    bilinear(y, x, m, weight);
    IntVec<A> inside_row = row, inside_column = column;
    const IntVec<A> rows = bits_as<IntVec<A>>(taps.rows + j), columns = bits_as<IntVec<A>>(taps.columns + j);
    const Mask<A> outside = __builtin_convertvector(
        ((UIntVec<A>)row >= (UIntVec<A>)(rows - 1)) | ((UIntVec<A>)column >= (UIntVec<A>)(columns - 1)), Mask<A>);
    if (any<A>(outside)) {
      any_outside |= outside;
      inside_row = nearest_inside<A>(row, rows), inside_column = nearest_inside<A>(column, columns);
      if (kMove) {
        // Move the weights along with their pixels.
        const BorderMasks<A> vertical(row, 0, rows), horizontal(column, 0, columns);
        const Vec<A> near = (vertical.near & horizontal.near) ? broadcast<A>(1) : Vec<A>{};
        for (Vec<A>& each : weight) each *= near;
        vertical.shift_values(weight[0], weight[2]);
        vertical.shift_values(weight[1], weight[3]);
        horizontal.shift_values(weight[0], weight[1]);
        horizontal.shift_values(weight[2], weight[3]);
      }
    }
    for (int corner = 0; corner < 4; ++corner) store(taps.weight[corner] + j, weight[corner]);
    std::memcpy(taps.row + j, &row, sizeof row);
    std::memcpy(taps.column + j, &column, sizeof column);
    std::memcpy(taps.inside_row + j, &inside_row, sizeof inside_row);
    std::memcpy(taps.inside_column + j, &inside_column, sizeof inside_column);
    if (kBackward) {
      store(taps.fraction_y + j, y);
      store(taps.fraction_x + j, x);
    }
  });
  return !any<A>(any_outside);
}

// The rows [first, last) of a level within value, or within grad_value, as bounds of cells.
DANET_INLINE CellBounds level_bounds(const MsLevel& level, int64_t stride, int64_t band, int64_t bands) {
  return CellBounds(int32_t(level.H * band / bands), int32_t(level.H * (band + 1) / bands), level.W, stride);
}

// Calls body(level, first, end) for every level that is not empty; its taps are [first, end).
template <typename Body>
DANET_INLINE void for_levels(const MsDeformAttnParams& p, const MsLevel* levels, const Body& body) {
  for (int64_t l = 0; l < p.L; ++l)
    if (levels[l].H > 0 && levels[l].W > 0) body(levels[l], l * p.P, (l + 1) * p.P);
}

// Calls body(n, q, m) for queries [begin, end) of all images and for all heads. A block of neighboring queries, which
// sample neighboring pixels, goes through one head after the other: the head's pixels then stay in the cache.
template <typename Body>
DANET_INLINE void for_queries(const MsDeformAttnParams& p, int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t kBlock = 64;
  while (begin < end) {
    const int64_t n = begin / p.Q, first = begin - n * p.Q;
    int64_t last = first + kBlock < p.Q ? first + kBlock : p.Q;
    if (last > first + end - begin) last = first + end - begin;
    for (int64_t m = 0; m < p.M; ++m)
      for (int64_t q = first; q < last; ++q) body(n, q, m);
    begin += last - first;
  }
}

}  // namespace
}  // namespace danet
