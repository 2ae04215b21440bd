// The backward pass of multi-scale deformable attention (ms_deform_attn.h) on the CPU. For the gradients of locations
// and weights, it computes the dot products of grad_output with the corners of each tap. For the gradient of value, it
// scatters grad_output to the same corners.
#pragma once

#include "../sdc/sdc_backward.h"
#include "ms_deform_attn_taps.h"

namespace danet {
namespace {

// Computes taps.dot: the dot products of grad_output [D] with the four corners of every tap.
template <typename T, typename A>
__attribute__((noinline)) void level_dots(
    const MsDeformAttnParams& p, MsTapTable<A>& taps, const MsLevel* levels, const T* grad_output, const T* head,
    int64_t stride) {
  constexpr int L = kLanes<A>, B = kTapsPerVector<A>;
  for_levels(p, levels, [&](const MsLevel& level, int64_t first, int64_t end) __attribute__((always_inline)) {
    const CellBounds bounds = level_bounds(level, stride, 0, 1);
    const T* image = head + level.start * stride;
    for (int64_t j = first; j < end; j += B) {
      // Multiply grad_output with the corners of kTapsPerVector taps, lane by lane.
      Vec<A> product[B][4] = {};
      for_channels<A>(p.D, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
        constexpr int V = decltype(block)::vectors;
        const CornerPointers<const T> from(image + c, bounds);
        Vec<A> grad[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_output + c + v * L, count);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
          const int64_t k = j + b < end ? j + b : end - 1;
          const int64_t cell = (int64_t(taps.inside_row[k]) * level.W + taps.inside_column[k]) * stride;
          multiply_corners<A>(product[b], from, cell, grad, count);
        }
      });
      // Reduce over the lanes. Sums beyond the level's last tap are overwritten by those of the next level.
      const auto dot = sum_lanes<A>(product);
      for (int corner = 0; corner < 4; ++corner)
        std::memcpy(taps.dot[corner] + j, reinterpret_cast<const A*>(&dot) + corner * B, B * sizeof(A));
    }
  });
  for (int64_t l = 0; l < p.L; ++l)
    if (levels[l].H == 0 || levels[l].W == 0)
      for (int64_t j = l * p.P; j < (l + 1) * p.P; ++j)
        for (auto& dots : taps.dot) dots[j] = 0;
}

// Computes the gradients of the locations [K, 2] and weights [K] of one query and head from taps.dot. `inside` tells
// that all cells lie inside their levels.
template <typename A, typename S>
DANET_INLINE void write_level_gradients(
    const MsDeformAttnParams& p, MsTapTable<A>& taps, bool inside, S* grad_locations, S* grad_weights) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < taps.K; j += L) {
    Vec<A> dot[4] = {load(taps.dot[0] + j), load(taps.dot[1] + j), load(taps.dot[2] + j), load(taps.dot[3] + j)};
    // Move the dot products back to the corners of the original cells; those of corners outside are zero.
    if (!inside) {
      const BorderMasks<A> rows(bits_as<IntVec<A>>(taps.row + j), 0, bits_as<IntVec<A>>(taps.rows + j));
      const BorderMasks<A> columns(bits_as<IntVec<A>>(taps.column + j), 0, bits_as<IntVec<A>>(taps.columns + j));
      columns.unshift_values(dot[0], dot[1]);
      columns.unshift_values(dot[2], dot[3]);
      rows.unshift_values(dot[0], dot[2]);
      rows.unshift_values(dot[1], dot[3]);
      for (Vec<A>& each : dot) each = (rows.near & columns.near) ? each : Vec<A>{};
    }
    // Compute the gradients, and write those of the locations back.
    Vec<A> grad_m, grad_y, grad_x;
    bilinear_gradients(
        load(taps.fraction_y + j), load(taps.fraction_x + j), load(taps.m + j), dot, grad_m, grad_y, grad_x);
    store(taps.grad_m + j, grad_m);
    grad_y *= load(taps.height + j);
    grad_x *= load(taps.width + j);
    store_up_to(grad_locations + 2 * j, pick<InterleavedLow>(grad_x, grad_y), 2 * (taps.K - j));
    store_up_to(grad_locations + 2 * j + L, pick<InterleavedHigh>(grad_x, grad_y), 2 * (taps.K - j) - L);
  }
  // Apply the gradient of the softmax, and write the gradients of the weights back.
  A mean = 0;
  if (p.softmax)
    for (int64_t j = 0; j < taps.K; ++j) mean += taps.m[j] * taps.grad_m[j];
  for (int64_t j = 0; j < taps.K; j += L) {
    const Vec<A> grad = load(taps.grad_m + j);
    store_up_to(grad_weights + j, p.softmax ? load(taps.m + j) * (grad - mean) : grad, taps.K - j);
  }
}

// Adds weight * grad_output to the corners of every tap that lie in the band. grad_head points to the head's channels
// in the first pixel of grad_value.
template <typename T, typename A>
__attribute__((noinline)) void scatter_levels(
    const MsDeformAttnParams& p, const MsTapTable<A>& taps, const MsLevel* levels, const T* grad_output, A* grad_head,
    int64_t stride, int64_t band, int64_t bands) {
  constexpr int L = kLanes<A>;
  for_channels<A>(p.D, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    // Load grad_output.
    Vec<A> grad[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_output + c + v * L, count);
    for_levels(p, levels, [&](const MsLevel& level, int64_t first, int64_t end) __attribute__((always_inline)) {
      const CellBounds bounds = level_bounds(level, stride, band, bands);
      A* image = grad_head + level.start * stride + c;
      const CornerPointers<A> to(image, level_bounds(level, stride, 0, 1));
      for (int64_t j = first; j < end; ++j) {
        const int32_t row = taps.inside_row[j];
        const int64_t cell = (int64_t(row) * level.W + taps.inside_column[j]) * stride;
        if (level.W > 1 && row >= bounds.first && row + 1 < bounds.last) {
          const Vec<A> weight[4] = {
              broadcast(taps.weight[0][j]), broadcast(taps.weight[1][j]), broadcast(taps.weight[2][j]),
              broadcast(taps.weight[3][j])};
          const auto weight_of = [&](int corner) __attribute__((always_inline)) { return weight[corner]; };
          scatter_corners<A>(to, cell, weight_of, grad, count);
          continue;
        }
        // Add one corner at a time: some corners may lie outside the band, and two corners are the same pixel if the
        // level has only one row or column.
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t corner_row = level.H > 1 ? row + corner / 2 : 0;
          if (corner_row < bounds.first || corner_row >= bounds.last) continue;
          const Vec<A> weight = broadcast(taps.weight[corner][j]);
          for (int v = 0; v < V; ++v) {
            A* pixel = to.corner[corner] + cell + v * L;
            store_channels(pixel, multiply_add<A>(weight, grad[v], load_channels(pixel, count)), count);
          }
        }
      }
    });
  });
}

// The same for cells that were not moved inside. This slow path is correct for all values.
template <typename T, typename A>
__attribute__((noinline)) void scatter_levels_checked(
    const MsDeformAttnParams& p, const MsTapTable<A>& taps, const MsLevel* levels, const T* grad_output, A* grad_head,
    int64_t stride, int64_t band, int64_t bands) {
  for_levels(p, levels, [&](const MsLevel& level, int64_t first, int64_t end) {
    const CellBounds bounds = level_bounds(level, stride, band, bands);
    for (int64_t j = first; j < end; ++j)
      bounds.visit(taps.row[j], taps.column[j], [&](int corner, int64_t element) {
        A* pixel = grad_head + level.start * stride + element;
        for_vectors_of<A>(p.D, [&](int64_t c, int count) {
          const Vec<A> grad = load_channels(grad_output + c, count), weight = broadcast(taps.weight[corner][j]);
          store_channels(pixel + c, multiply_add<A>(weight, grad, load_channels(pixel + c, count)), count);
        });
      });
  });
}

// MsDeformAttnKernels::backward.
template <typename T, typename S>
void backward_head(
    const MsDeformAttnParams& p, const MsLevel* levels, ImageView grad_output, ImageView value, ImageView locations,
    ImageView weights, ImageView grad_value, ImageView grad_locations, ImageView grad_weights, int64_t n, int64_t m,
    int64_t begin, int64_t end, int64_t band, int64_t bands) {
  using A = Compute<T>;
  MsTapTable<A> taps(p, levels);
  const T* head = value.pixel<T>(n, 0) + m * p.head_stride;
  A* grad_head = grad_value.pixel<A>(n, 0) + m * p.D;
  for (int64_t q = 0; q < p.Q; ++q) {
    // Prepare the taps.
    const S* location = locations.pixel<S>(n, q) + m * taps.K * 2;
    const T* grad = grad_output.pixel<T>(n, q) + m * p.D;
    fill_weights(p, taps, weights.pixel<S>(n, q) + m * taps.K);
    const bool inside = fill_cells</*kBackward=*/true, /*kMove=*/true>(taps, location);
    // Compute the gradients of locations and weights.
    if (q >= begin && q < end) {
      level_dots(p, taps, levels, grad, head, value.pixel_stride);
      write_level_gradients(
          p, taps, inside, grad_locations.pixel<S>(n, q) + m * taps.K * 2, grad_weights.pixel<S>(n, q) + m * taps.K);
    }
    // Add to grad_value. Take the bounds-checked path if a moved cell would add 0 * Inf = NaN to a pixel that the
    // sample does not use.
    if (inside || (all_finite(grad, p.D) && all_finite(taps.m, taps.K))) {
      scatter_levels(p, taps, levels, grad, grad_head, grad_value.pixel_stride, band, bands);
    } else {
      fill_cells</*kBackward=*/true, /*kMove=*/false>(taps, location);
      scatter_levels_checked(p, taps, levels, grad, grad_head, grad_value.pixel_stride, band, bands);
    }
  }
}

}  // namespace
}  // namespace danet
