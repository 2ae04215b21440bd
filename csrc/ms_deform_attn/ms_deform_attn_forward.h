// The forward pass of multi-scale deformable attention (ms_deform_attn.h) on the CPU. It prepares the taps of a query
// and head (ms_deform_attn_taps.h), then gathers whole vectors of channels from the four corners of each tap, and sums
// them.
#pragma once

#include "../sdc/sdc_forward.h"
#include "ms_deform_attn_taps.h"

namespace danet {
namespace {

// Computes out [D] from the prepared taps. head points to the head's channels in the first pixel of the image. Not
// inlined, because the loop needs all registers.
template <typename T, typename A>
__attribute__((noinline)) void gather_levels(
    const MsDeformAttnParams& p, const MsTapTable<A>& taps, const MsLevel* levels, const T* head, int64_t stride,
    T* out) {
  constexpr int L = kLanes<A>;
  for_channels<A>(p.D, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    constexpr int kChains = V >= 4 ? 2 : 4;  // independent sums, to hide the latency of additions
    Vec<A> total[kChains][V] = {};
    for_levels(p, levels, [&](const MsLevel& level, int64_t first, int64_t end) __attribute__((always_inline)) {
      const CornerPointers<const T> from(head + level.start * stride + c, level_bounds(level, stride, 0, 1));
      for (int64_t j = first; j < end; ++j) {
        // Add the four corners, times their weights.
        const int64_t cell = (int64_t(taps.inside_row[j]) * level.W + taps.inside_column[j]) * stride;
        const auto weight_of = [&](int corner)
                                   __attribute__((always_inline)) { return broadcast<A>(taps.weight[corner][j]); };
        add_corners<A>(total, from, cell, weight_of, count);
      }
    });
    // Add up the chains, and write back.
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vec<A> result = total[0][v];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) result += total[chain][v];
      store_channels(out + c + v * L, result, count);
    }
  });
}

// The same with a bounds check of every corner. This slow path is correct for all cells and values.
template <typename T, typename A, typename S>
__attribute__((noinline)) void gather_levels_checked(
    const MsDeformAttnParams& p, MsTapTable<A>& taps, const MsLevel* levels, const S* locations, const T* head,
    int64_t stride, T* out) {
  fill_cells</*kBackward=*/false, /*kMove=*/false>(taps, locations);
  for_vectors_of<A>(p.D, [&](int64_t c, int count) {
    Vec<A> total{};
    for_levels(p, levels, [&](const MsLevel& level, int64_t first, int64_t end) {
      const CellBounds bounds = level_bounds(level, stride, 0, 1);
      for (int64_t j = first; j < end; ++j) {
        bounds.visit(taps.row[j], taps.column[j], [&](int corner, int64_t element) {
          total += taps.weight[corner][j] * load_channels(head + level.start * stride + element + c, count);
        });
        if (taps.weight[0][j] != taps.weight[0][j]) total += taps.weight[0][j];  // a NaN coordinate or weight
      }
    });
    store_channels(out + c, total, count);
  });
}

// MsDeformAttnKernels::forward.
template <typename T, typename S>
void forward_queries(
    const MsDeformAttnParams& p, const MsLevel* levels, ImageView value, ImageView locations, ImageView weights,
    ImageView out, int64_t begin, int64_t end) {
  using A = Compute<T>;
  MsTapTable<A> taps(p, levels);
  for_queries(p, begin, end, [&](int64_t n, int64_t q, int64_t m) {
    // Prepare the taps, gather and sum.
    const S* location = locations.pixel<S>(n, q) + m * taps.K * 2;
    const T* head = value.pixel<T>(n, 0) + m * p.head_stride;
    T* to = out.pixel<T>(n, q) + m * p.D;
    fill_weights(p, taps, weights.pixel<S>(n, q) + m * taps.K);
    const bool inside = fill_cells</*kBackward=*/false, /*kMove=*/true>(taps, location);
    gather_levels(p, taps, levels, head, value.pixel_stride, to);
    // A cell that was moved reads pixels that the sample does not use, with weight 0. If such a pixel is not finite, 0
    // * Inf = NaN: compute the result again, with bounds checks.
    if (!inside && any_nan(to, p.D)) gather_levels_checked(p, taps, levels, location, head, value.pixel_stride, to);
  });
}

}  // namespace
}  // namespace danet
