// SDC's sums over the prepared taps of one pixel, for the CPU kernels: whole vectors of channels from the four corners of
// each tap.
#pragma once

#include "sdc_taps.h"

namespace danet {
namespace {

// The corners of a cell: where they are in memory, and which of them lie in rows [first, last) of the image.
struct Corners {
  int32_t first, last, W;
  int64_t stride;

  Corners(const SdcParams& p, const ImageView& image, int64_t first, int64_t last)
      : first(int32_t(first)), last(int32_t(last)), W(int32_t(p.W)), stride(image.pixel_stride) {}

  // Whether there are two rows and two columns, so that the corners of a cell are four places.
  bool apart() const { return last - first > 1 && W > 1; }

  // body(corner, element) for those of the cell at (y, x) that are there; element: where the pixel begins.
  template <typename Body>
  DANET_INLINE void visit(int32_t y, int32_t x, const Body& body) const {
    for (int corner = 0; corner < 4; ++corner) {
      const int32_t row = y + corner / 2, column = x + corner % 2;
      if (row >= first && row < last && uint32_t(column) < uint32_t(W))
        body(corner, (int64_t(row) * W + column) * stride);
    }
  }
};

// For each corner of cells that lie inside, a pointer to which a cell's place is added. Where there is but one row or
// column, both corners are in that one, and only one of them has a weight.
template <typename T>
struct Bases {
  T* corner[4];
  Bases(T* image, const Corners& corners) {
    const int64_t right = corners.W > 1 ? corners.stride : 0;
    const int64_t below = corners.last - corners.first > 1 ? corners.W * corners.stride : 0;
    for (int i = 0; i < 4; ++i) corner[i] = image + i / 2 * below + i % 2 * right;
  }
};

// A row's channels in blocks of 4, 2 and 1 vectors, then the rest: body(block<V>, c, count), count = 0 for whole ones.
template <int V>
struct Block {
  static constexpr int vectors = V;
};
template <typename A, typename Body>
DANET_INLINE void for_channels(int64_t C, const Body& body) {
  constexpr int L = kLanes<A>;
  int64_t c = 0;
  for (; c + 4 * L <= C; c += 4 * L) body(Block<4>{}, c, 0);
  if (c + 2 * L <= C) body(Block<2>{}, c, 0), c += 2 * L;
  if (c + L <= C) body(Block<1>{}, c, 0), c += L;
  if (c < C) body(Block<1>{}, c, int(C - c));
}

// The weights of one group's taps, each to be had in all lanes of a vector.
template <typename A>
struct FromMemory {
  const A* weight[4];
  FromMemory(const Taps<A>& taps, int64_t first)
      : weight{taps.weight[0] + first, taps.weight[1] + first, taps.weight[2] + first, taps.weight[3] + first} {}
  DANET_INLINE Vec<A> of(int corner, int64_t k) const { return broadcast<A>(weight[corner][k]); }
};
#if defined(__AVX512F__)
// Of at most as many taps as there are lanes: a permutation of a register costs less than a load.
template <typename A>
struct FromRegisters {
  Vec<A> weight[4];
  FromRegisters(const Taps<A>& taps, int64_t first)
      : weight{
            load(taps.weight[0] + first), load(taps.weight[1] + first), load(taps.weight[2] + first),
            load(taps.weight[3] + first)} {}
  DANET_INLINE Vec<A> of(int corner, int64_t k) const {
    return broadcast_lane(weight[corner], IntVec<A>{} + int32_t(k));
  }
};
#endif

// out[0..C) of each group of J taps: the sums over their K taps, whose cells lie inside. kTaps: K, or 0 where it is not known
// beforehand. Not inlined: it wants all registers.
template <typename Weights, int kTaps, typename T, typename A>
__attribute__((noinline)) void gather_with(
    const Taps<A>& taps, int64_t J, int64_t any_K, bool softmax, const Corners& corners, const T* image, T* out,
    int64_t C) {
  constexpr int L = kLanes<A>;
  const int64_t K = kTaps > 0 ? kTaps : any_K;
  for (int64_t first = 0; first < J; first += K, out += C) {
    const Vec<A> factor = broadcast<A>(softmax ? 1 / sum_of<kTaps>(taps.m + first, K) : A(1));
    for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
      constexpr int V = decltype(block)::vectors;
      constexpr int kChains = V >= 4 ? 1 : 4 / V;  // an addition waits for the one before: keep four on their way
      Vec<A> total[kChains][V] = {};
      const Weights weights(taps, first);
      const Bases<const T> from(image + c, corners);
      const int32_t* cell = taps.cell + first;
#pragma GCC unroll 9
      for (int64_t k = 0; k < K; ++k) {
        const int64_t place = cell[k];
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          const Vec<A> weight = weights.of(corner, k);
          const T* p = from.corner[corner] + place;
          if (V > 1) p = opaque_pointer(p);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) total[corner % kChains][v] += weight * load_channels(p + v * L, count);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Vec<A> result = total[0][v];
#pragma GCC unroll 4
        for (int chain = 1; chain < kChains; ++chain) result += total[chain][v];
        store_channels(out + c + v * L, result * factor, count);
      }
    });
  }
}

template <typename T, typename A>
DANET_INLINE void gather(
    const Taps<A>& taps, int64_t J, int64_t K, bool softmax, const Corners& corners, const T* image, T* out,
    int64_t C) {
#if defined(__AVX512F__)
  if constexpr (kHasBroadcastLane<A>) {
    if (K == 9) return gather_with<FromRegisters<A>, 9>(taps, J, K, softmax, corners, image, out, C);
    if (K <= kLanes<A>) return gather_with<FromRegisters<A>, 0>(taps, J, K, softmax, corners, image, out, C);
  }
#endif
  // Loops over short vectors are quicker than all their taps one after the other.
  if constexpr (kLanes<A> > 4 && !kHasBroadcastLane<A>)
    if (K == 9) return gather_with<FromMemory<A>, 9>(taps, J, K, softmax, corners, image, out, C);
  gather_with<FromMemory<A>, 0>(taps, J, K, softmax, corners, image, out, C);
}

// out[0..C) of the group at `place` with every corner looked at: right wherever the cells lie and whatever the image
// holds outside of them.
template <typename T, typename A>
__attribute__((noinline)) void sum_taps_exactly(
    const SdcParams& p, Taps<A>& taps, const Place<A, T>& place, const Corners& corners, const T* image, T* out,
    int64_t C) {
  prepare<false>(p, taps, place);
  const Vec<A> factor = broadcast<A>(p.softmax ? 1 / sum_of<0>(taps.m, p.K) : A(1));
  for_vectors_of<A>(C, [&](int64_t c, int count) {
    Vec<A> total{};
    for (int64_t k = 0; k < p.K; ++k) {
      corners.visit(taps.y[k], taps.x[k], [&](int corner, int64_t element) {
        total += taps.weight[corner][k] * load_channels(image + element + c, count);
      });
      if (taps.weight[0][k] != taps.weight[0][k]) total += taps.weight[0][k];  // NaN, wherever it lies
    }
    store_channels(out + c, total * factor, count);
  });
}

// out of the groups at `place`.
template <typename T, typename A>
DANET_INLINE void sum_taps(
    const SdcParams& p, Taps<A>& taps, const Place<A, T>& place, const Corners& corners, const T* image, T* out,
    int64_t C) {
  const bool inside = prepare<false>(p, taps, place);
  if (!inside) fold<true>(p, taps, place.J, 0, p.H, place.stride, taps.cell);
  gather(taps, place.J, p.K, p.softmax, corners, image, out, C);
  if (inside || !any_nan(out, place.J / p.K * C)) return;
  // A pixel at the border that is not finite, times the weight zero, is not zero.
  Place<A, T> group = place;
  group.J = p.K;
  for (int64_t j = 0; j < place.J;
       j += p.K, group.offset += p.offset_group, group.mask += p.mask_group, image += C, out += C)
    if (any_nan(out, C)) sum_taps_exactly(p, taps, group, corners, image, out, C);
}

}  // namespace
}  // namespace danet
