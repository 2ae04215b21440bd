// The forward pass of SDC (sdc.h) on the CPU. It prepares the taps of a pixel (sdc_taps.h). Then, one group at a time,
// it gathers whole vectors of channels from the four corners of each tap, and sums them (or, for deform_im2col, writes
// each tap on its own).
#pragma once

#include "sdc_taps.h"

namespace danet {
namespace {

// The corner weights of one group's taps. broadcast_weight(corner, k) returns one of them in all lanes of a vector.
// This version reads it from memory.
template <typename A>
struct WeightsInMemory {
  const A* weight[4];
  WeightsInMemory(const TapTable<A>& taps, int64_t first)
      : weight{taps.weight[0] + first, taps.weight[1] + first, taps.weight[2] + first, taps.weight[3] + first} {}
  DANET_INLINE Vec<A> broadcast_weight(int corner, int64_t k) const { return broadcast<A>(weight[corner][k]); }
};
#if defined(__AVX512F__)
// The same with the weights in registers, for at most as many taps as a vector has lanes: permuting a register costs
// less than a load.
template <typename A>
struct WeightsInRegisters {
  Vec<A> weight[4];
  WeightsInRegisters(const TapTable<A>& taps, int64_t first)
      : weight{
            load(taps.weight[0] + first), load(taps.weight[1] + first), load(taps.weight[2] + first),
            load(taps.weight[3] + first)} {}
  DANET_INLINE Vec<A> broadcast_weight(int corner, int64_t k) const {
    return broadcast_lane(weight[corner], IntVec<A>{} + int32_t(k));
  }
};
#endif

// Adds the four corners of a cell, times their weights, to `total`; weight_of(corner) returns a weight in all lanes.
// The kChains sums are independent, to hide the latency of additions; their total is the result.
template <typename A, int kChains, int V, typename T, typename WeightOf>
DANET_INLINE void add_corners(
    Vec<A> (&total)[kChains][V], const CornerPointers<const T>& from, int64_t cell, const WeightOf& weight_of,
    int count) {
#pragma GCC unroll 4
  for (int corner = 0; corner < 4; ++corner) {
    const Vec<A> weight = weight_of(corner);
    const T* p = from.corner[corner] + cell;
    if (V > 1) p = opaque_pointer(p);  // one register for the V addresses
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total[corner % kChains][v] += weight * load_channels(p + v * kLanes<A>, count);
  }
}

// Computes out [groups, group_channels] from the num_taps = groups * K taps of the table: for each group, the sum over
// its K taps. Returns whether all results are finite. All cells must lie inside the image. kTaps is K if it is known at
// compile time, else 0; runtime_K is K in both cases. group_image points to the first channel of the first group in the
// first pixel. Not inlined, because the loop needs all registers.
template <typename Weights, int kTaps, typename T, typename A>
__attribute__((noinline)) bool gather_groups(
    const TapTable<A>& taps, int64_t num_taps, int64_t runtime_K, bool softmax, const CellBounds& bounds,
    const T* group_image, T* out, int64_t group_channels) {
  constexpr int L = kLanes<A>;
  const int64_t K = kTaps > 0 ? kTaps : runtime_K;
  Vec<A> zero_or_nan{};  // NaN in lanes in which a result was not finite
  for (int64_t first = 0; first < num_taps; first += K, out += group_channels) {
    const Vec<A> factor = broadcast<A>(softmax ? 1 / sum_values<kTaps>(taps.m + first, K) : A(1));
    for_channels<A>(group_channels, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
      constexpr int V = decltype(block)::vectors;
      constexpr int kChains = V >= 4 ? 1 : 4 / V;  // independent sums, to hide the latency of additions
      Vec<A> total[kChains][V] = {};
      const Weights weights(taps, first);
      const CornerPointers<const T> from(group_image + c, bounds);
      const int32_t* cell = taps.cell + first;
#pragma GCC unroll 9
      for (int64_t k = 0; k < K; ++k) {
        // Add the four corners, times their weights.
        const auto weight_of = [&](int corner)
                                   __attribute__((always_inline)) { return weights.broadcast_weight(corner, k); };
        add_corners<A>(total, from, cell[k], weight_of, count);
      }
      // Add up the chains, divide by the denominator of the softmax, and write back.
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Vec<A> result = total[0][v];
#pragma GCC unroll 4
        for (int chain = 1; chain < kChains; ++chain) result += total[chain][v];
        result *= factor;
        zero_or_nan += result * A(0);
        store_channels(out + c + v * L, result, count);
      }
    });
  }
  return !any<A>(zero_or_nan != zero_or_nan);
}

// Chooses the instance of gather_groups.
template <typename T, typename A>
DANET_INLINE bool gather(
    const TapTable<A>& taps, int64_t num_taps, int64_t K, bool softmax, const CellBounds& bounds, const T* group_image,
    T* out, int64_t group_channels) {
#if defined(__AVX512F__)
  if constexpr (kHasBroadcastLane<A>) {
    if (K == 9)
      return gather_groups<WeightsInRegisters<A>, 9>(
          taps, num_taps, K, softmax, bounds, group_image, out, group_channels);
    if (K <= kLanes<A>)
      return gather_groups<WeightsInRegisters<A>, 0>(
          taps, num_taps, K, softmax, bounds, group_image, out, group_channels);
  }
#endif
  // Unrolling nine taps is slower than a loop if vectors are short.
  if constexpr (kLanes<A> > 4 && !kHasBroadcastLane<A>)
    if (K == 9)
      return gather_groups<WeightsInMemory<A>, 9>(taps, num_taps, K, softmax, bounds, group_image, out, group_channels);
  return gather_groups<WeightsInMemory<A>, 0>(taps, num_taps, K, softmax, bounds, group_image, out, group_channels);
}

// Writes the sample of every tap, times m, to its channels of out. Returns whether all of them are finite. All cells
// must lie inside the image.
template <typename T, typename A>
__attribute__((noinline)) bool gather_samples(
    const TapTable<A>& taps, int64_t num_taps, const CellBounds& bounds, const T* group_image, T* out,
    int64_t group_channels) {
  constexpr int L = kLanes<A>;
  const CornerPointers<const T> from(group_image, bounds);
  Vec<A> zero_or_nan{};  // NaN in lanes in which a sample was not finite
  for (int64_t j = 0; j < num_taps; ++j) {
    const Vec<A> weight[4] = {
        broadcast<A>(taps.weight[0][j]), broadcast<A>(taps.weight[1][j]), broadcast<A>(taps.weight[2][j]),
        broadcast<A>(taps.weight[3][j])};
    const int64_t element = taps.cell[j];
    T* to = out + taps.out_channel[j];
    for_channels<A>(group_channels, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
      constexpr int V = decltype(block)::vectors;
      // Add the four corners, times their weights, and write back.
      Vec<A> sample[V] = {};
#pragma GCC unroll 4
      for (int corner = 0; corner < 4; ++corner) {
        const T* values = from.corner[corner] + element + c;
        if (V > 1) values = opaque_pointer(values);  // one register for the V addresses
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sample[v] += weight[corner] * load_channels(values + v * L, count);
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        zero_or_nan += sample[v] * A(0);
        store_channels(to + c + v * L, sample[v], count);
      }
    });
  }
  return !any<A>(zero_or_nan != zero_or_nan);
}

// Computes out [group_channels] of the one group in `source`, with a bounds check of every corner, and with weights
// that are divided by the denominator of the softmax before the sum. This slow path is correct for all cells and
// values.
template <typename T, typename A, typename S>
__attribute__((noinline)) void sum_taps_checked(
    const SdcParams& p, TapTable<A>& taps, const TapInputs<A, S>& source, const CellBounds& bounds,
    const T* group_image, T* out, int64_t group_channels) {
  prepare_taps</*kBackward=*/false>(p, taps, source);
  const A factor = p.softmax ? 1 / sum_values<0>(taps.m, p.K) : A(1);
  for (int corner = 0; corner < 4; ++corner)
    for (int64_t k = 0; k < p.K; ++k) taps.weight[corner][k] *= factor;
  for_vectors_of<A>(group_channels, [&](int64_t c, int count) {
    Vec<A> total{};
    for (int64_t k = 0; k < p.K; ++k) {
      bounds.visit(taps.row[k], taps.column[k], [&](int corner, int64_t element) {
        total += taps.weight[corner][k] * load_channels(group_image + element + c, count);
      });
      if (taps.weight[0][k] != taps.weight[0][k]) total += taps.weight[0][k];  // a NaN coordinate or mask
      if (p.tap_stride > 0) {
        store_channels(out + k * p.tap_stride + c, total, count);
        total = Vec<A>{};
      }
    }
    if (p.tap_stride == 0) store_channels(out + c, total, count);
  });
}

// Computes those groups of `source` again whose results are not finite. A sum before the division may have overflowed,
// or a clamped cell has read a pixel that the sample does not use: if that is not finite, 0 * Inf = NaN.
template <typename T, typename A, typename S>
void sum_not_finite_groups(
    const SdcParams& p, TapTable<A>& taps, const TapInputs<A, S>& source, const CellBounds& bounds,
    const T* group_image, T* out, int64_t group_channels) {
  TapInputs<A, S> group = source;
  group.num_taps = p.K;
  for (int64_t j = 0; j < source.num_taps;
       j += p.K, group.offset += 2 * p.K, group.mask += p.K, group_image += group_channels, out += group_channels)
    if (p.tap_stride > 0 || !all_finite(out, group_channels))
      sum_taps_checked(p, taps, group, bounds, group_image, out, group_channels);
}

// Computes out [groups, group_channels] of the groups in `source`, whose offsets and mask may have another dtype S than
// the image.
template <typename T, typename A, typename S>
DANET_INLINE void sum_taps(
    const SdcParams& p, TapTable<A>& taps, const TapInputs<A, S>& source, const CellBounds& bounds,
    const T* group_image, T* out, int64_t group_channels) {
  // Prepare the taps, gather and sum.
  const bool inside = prepare_taps</*kBackward=*/false>(p, taps, source);
  if (!inside) clamp_cells</*kWeights=*/true>(p, taps, source.num_taps, 0, p.H, source.stride, taps.cell);
  const bool finite = p.tap_stride > 0
                          ? gather_samples(taps, source.num_taps, bounds, group_image, out, group_channels)
                          : gather(taps, source.num_taps, p.K, p.softmax, bounds, group_image, out, group_channels);
  if (!finite) sum_not_finite_groups(p, taps, source, bounds, group_image, out, group_channels);
}

// SdcKernels::forward.
template <typename T>
void forward(
    const SdcParams& p, ImageView input, ImageView offset, ImageView mask, ImageView out, int64_t begin, int64_t end) {
  TapTable<Compute<T>> taps(p);
  const CellBounds bounds(p, input, 0, p.H);
  const int64_t group_channels = p.C / p.G;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.H_out;
    const T* image = input.pixel<T>(n, 0);
    T* out_row = out.pixel<T>(n, row % p.H_out * p.W_out);
    for_row<T>(
        p, taps, offset, mask, input.pixel_stride, 0, n, row % p.H_out,
        [&](int64_t x, int64_t g, const TapInputs<Compute<T>, T>& source) __attribute__((always_inline)) {
          sum_taps(
              p, taps, source, bounds, image + g * group_channels, out_row + x * out.pixel_stride + g * group_channels,
              group_channels);
        });
  }
}

}  // namespace
}  // namespace danet
