// The backward pass of SDC (sdc.h) on the CPU. For the gradients of offset and mask, it computes the dot products of
// grad_output with the corners of each tap. For the gradient of the input, it scatters grad_output to the same corners.
#pragma once

#include "sdc_taps.h"

namespace danet {
namespace {

// Adds grad, times the corner's weight, to each corner of a cell; weight_of(corner) returns a weight in all lanes. The
// corners must be four different pixels.
template <typename A, int V, typename WeightOf>
DANET_INLINE void scatter_corners(
    const CornerPointers<A>& to, int64_t cell, const WeightOf& weight_of, const Vec<A> (&grad)[V], int count) {
  constexpr int L = kLanes<A>;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    // Load all corners before storing: rows are often a multiple of 4096 bytes apart, and the loads would hit 4K
    // aliasing with the stores.
    Vec<A> updated[4];
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner)
      updated[corner] =
          multiply_add<A>(weight_of(corner), grad[v], load_channels(to.corner[corner] + cell + v * L, count));
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) store_channels(to.corner[corner] + cell + v * L, updated[corner], count);
  }
}

// grad_input[corner of each tap] += weight * grad_output, for cells inside. Consecutive additions to the same element
// are bound by store-to-load latency; interleaving the groups, which share no channel, hides it. Unless kAll, taps with
// both rows outside the bounds are skipped.
template <bool kAll, typename T, typename A>
DANET_INLINE void scatter(
    const TapTable<A>& taps, int64_t groups, int64_t K, const CellBounds& bounds, const T* grad_output, A* grad_image,
    int64_t group_channels) {
  constexpr int L = kLanes<A>;
  for_channels<A>(group_channels, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    const CornerPointers<A> to(grad_image + c, bounds);
    for (int64_t k = 0; k < K; ++k)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t j = g * K + k, cell = taps.grad_cell[j];
        if (!kAll && (taps.row[j] < bounds.first - 1 || taps.row[j] >= bounds.last)) continue;
        // Load grad_output.
        Vec<A> grad[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_output + taps.out_channel[j] + c + v * L, count);
        scatter_corners<A>(
            to, cell, [&](int corner) __attribute__((always_inline)) { return broadcast(taps.weight[corner][j]); },
            grad, count);
      }
  });
}

// The same with a bounds check of every corner. This slow path is correct for all cells and values.
template <typename T, typename A>
__attribute__((noinline)) void scatter_checked(
    const TapTable<A>& taps, int64_t groups, int64_t K, const CellBounds& bounds, const T* grad_output, A* grad_image,
    int64_t group_channels) {
  for (int64_t k = 0; k < K; ++k)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t j = g * K + k;
      bounds.visit(taps.row[j], taps.column[j], [&](int corner, int64_t element) {
        A* pixel = grad_image + element + g * group_channels;
        for_vectors_of<A>(group_channels, [&](int64_t c, int count) {
          const Vec<A> grad = load_channels(grad_output + taps.out_channel[j] + c, count);
          const Vec<A> weight = broadcast(taps.weight[corner][j]);
          store_channels(pixel + c, multiply_add<A>(weight, grad, load_channels(pixel + c, count)), count);
        });
      });
    }
}

// The number of taps whose four dot products fill a vector.
template <typename A>
constexpr int kTapsPerVector = kLanes<A> >= 4 ? kLanes<A> / 4 : 1;

// Adds the products of grad with each corner of a cell to `product`, lane by lane.
template <typename A, int V, typename T>
DANET_INLINE void multiply_corners(
    Vec<A> (&product)[4], const CornerPointers<const T>& from, int64_t cell, const Vec<A> (&grad)[V], int count) {
#pragma GCC unroll 4
  for (int corner = 0; corner < 4; ++corner) {
    const T* p = from.corner[corner] + cell;
    if (V > 1) p = opaque_pointer(p);  // one register for the V addresses
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) product[corner] += grad[v] * load_channels(p + v * kLanes<A>, count);
  }
}

// Computes dot[corner] = sum_c grad_output[c] * input[c] at the corners of every tap, whose cells must lie inside the
// image. Writes to taps.dot, for each kTapsPerVector taps, first their dots of corner 0, then those of corner 1, and so
// on.
template <typename T, typename A>
DANET_INLINE void corner_dots(
    TapTable<A>& taps, int64_t num_taps, const CellBounds& bounds, const T* grad_output, const T* image,
    int64_t group_channels) {
  constexpr int L = kLanes<A>, B = kTapsPerVector<A>;
  for_channels<A>(group_channels, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    const CornerPointers<const T> from(image + c, bounds);
    for (int64_t first = 0; first < num_taps; first += B) {
      // Multiply grad_output with the corners of kTapsPerVector taps, lane by lane.
      Vec<A> product[B][4] = {};
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const int64_t j = first + b < num_taps ? first + b : num_taps - 1, cell = taps.cell[j];
        const T* grad_at = grad_output + taps.out_channel[j] + c;
        Vec<A> grad[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_at + v * L, count);
        multiply_corners<A>(product[b], from, cell, grad, count);
      }
      // Reduce over the lanes, and add the dot products of the previous channels.
      const auto dot = sum_lanes<A>(product);
      A* to = taps.dot + 4 * first;
      const auto sum = c > 0 ? dot + bits_as<decltype(dot + dot)>(to) : dot;
      std::memcpy(to, &sum, sizeof sum);
    }
  });
}

// Computes grad_offset and grad_mask of the prepared groups from taps.dot. `inside` tells that all cells lie inside the
// image, so that clamp_cells has moved none of them.
template <typename T, typename A>
DANET_INLINE void write_gradients(
    const SdcParams& p, TapTable<A>& taps, int64_t num_taps, bool inside, T* grad_offset, T* grad_mask) {
  constexpr int L = kLanes<A>;
  const A scale = A(p.offset_scale);
  for (int64_t j = 0; j < num_taps; j += L) {
    // Load the dot products of a vector of taps.
    const A* d = taps.dot + 4 * j;
    Vec<A> dot[4];
    transpose_quarters(load(d), load(d + L), load(d + 2 * L), load(d + 3 * L), dot);
    // Move them back to the corners of the original cells; corners outside the image have a dot product of zero.
    if (!inside) {
      const BorderMasks<A> rows(bits_as<IntVec<A>>(taps.row + j), 0, int32_t(p.H));
      const BorderMasks<A> columns(bits_as<IntVec<A>>(taps.column + j), 0, int32_t(p.W));
      columns.unshift_values(dot[0], dot[1]);
      columns.unshift_values(dot[2], dot[3]);
      rows.unshift_values(dot[0], dot[2]);
      rows.unshift_values(dot[1], dot[3]);
      for (Vec<A>& each : dot) each = (rows.near & columns.near) ? each : Vec<A>{};
    }
    // Compute the gradients, and write grad_offset back.
    Vec<A> grad_m, grad_y, grad_x;
    bilinear_gradients(
        load(taps.fraction_y + j), load(taps.fraction_x + j), load(taps.m + j), dot, grad_m, grad_y, grad_x);
    store(taps.grad_m + j, grad_m);
    grad_y *= scale;
    grad_x *= scale;
    const Vec<A> one = p.x_first ? grad_x : grad_y, two = p.x_first ? grad_y : grad_x;
    store_up_to(grad_offset + 2 * j, pick<InterleavedLow>(one, two), 2 * (num_taps - j));
    store_up_to(grad_offset + 2 * j + L, pick<InterleavedHigh>(one, two), 2 * (num_taps - j) - L);
  }
  // Apply the gradient of the softmax, and write grad_mask back.
  if (p.softmax)
    fill_per_group(taps, num_taps, p.K, [&](int64_t first) {
      A mean = 0;
      for (int64_t j = first; j < first + p.K; ++j) mean += taps.m[j] * taps.grad_m[j];
      return mean;
    });
  for (int64_t j = 0; j < num_taps; j += L) {
    Vec<A> grad = load(taps.grad_m + j);
    if (p.softmax) grad = load(taps.m + j) * (grad - load(taps.group_value + j));
    store_up_to(grad_mask + j, grad, num_taps - j);
  }
}

// SdcKernels::backward.
template <typename T>
void backward(
    const SdcParams& p, ImageView grad_output, ImageView input, ImageView offset, ImageView mask, ImageView grad_input,
    ImageView grad_offset, ImageView grad_mask, int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last,
    const int32_t (*row_ranges)[2]) {
  using A = Compute<T>;
  TapTable<A> taps(p);
  const CellBounds bounds(p, input, 0, p.H), grad_bounds(p, grad_input, first, last);
  const int64_t group_channels = p.C / p.G;
  JoinedGroups<T> joined(p);
  for (int64_t y = 0; y < p.H_out; ++y) {
    // Skip output rows that neither belong to [begin, end) nor sample rows [first, last).
    bool own = y >= begin && y < end, within = true, touched = true;
    if (row_ranges != nullptr) {
      const int32_t* rows = row_ranges[n * p.H_out + y];
      within = rows[0] >= first && rows[1] < last;
      touched = rows[0] < last && rows[1] >= first;
    }
    if (!own && !touched) continue;
    for_row<T>(
        p, taps, offset, mask, input.pixel_stride, grad_input.pixel_stride, n, y,
        [&](int64_t x, int64_t g, const TapInputs<A, T>& source) {
          const int64_t i = y * p.W_out + x;
          const int64_t groups = source.num_taps / p.K;
          const bool inside = prepare_taps</*kBackward=*/true>(p, taps, source);
          const T* grad = grad_output.pixel<T>(n, i) + g * group_channels;
          // Compute grad_offset and grad_mask.
          if (own) {
            if (!inside) clamp_cells</*kWeights=*/false>(p, taps, source.num_taps, 0, p.H, source.stride, taps.cell);
            corner_dots(taps, source.num_taps, bounds, grad, input.pixel<T>(n, 0) + g * group_channels, group_channels);
            T* grad_offsets = grad_offset.pixel<T>(n, i) + g * p.offset_group_stride;
            T* grad_masks = grad_mask.pixel<T>(n, i) + g * p.mask_group_stride;
            write_gradients(
                p, taps, source.num_taps, inside, joined.is_needed ? joined.offset : grad_offsets,
                joined.is_needed ? joined.mask : grad_masks);
            if (joined.is_needed) joined.write(p, grad_offsets, grad_masks, groups);
          }
          // Add to grad_input.
          if (touched) {
            A* grad_image = grad_input.pixel<A>(n, 0) + g * group_channels;
            if (inside && within)
              return scatter</*kAll=*/true>(taps, groups, p.K, grad_bounds, grad, grad_image, group_channels);
            // Take the bounds-checked path if corners may be the same pixel (`scatter` loads all corners before it
            // stores any, and would lose an addition), or if a value is not finite (0 * Inf = NaN).
            const bool finite = p.tap_stride > 0 ? all_finite(grad_output.pixel<T>(n, i), p.C_out)
                                                 : all_finite(grad, groups * group_channels);
            if (!grad_bounds.has_four_pixels() || !finite || !all_finite(taps.m, source.num_taps))
              return scatter_checked(taps, groups, p.K, grad_bounds, grad, grad_image, group_channels);
            clamp_cells</*kWeights=*/true>(p, taps, source.num_taps, first, last, source.grad_stride, taps.grad_cell);
            scatter</*kAll=*/false>(taps, groups, p.K, grad_bounds, grad, grad_image, group_channels);
          }
        });
  }
}

}  // namespace
}  // namespace danet
