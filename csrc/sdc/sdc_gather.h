// SDC's sums over the prepared taps of one pixel, for the CPU kernels: whole vectors of channels from the four corners of
// each tap.
#pragma once

#include "sdc_taps.h"

namespace danet {
namespace {

// The corners of a cell: where they are in memory, and which of them lie in rows [first, last) of the image.
struct Corners {
  int32_t first, last, W;
  int64_t step[4];

  Corners(const SdcParams& p, const ImageView& image, int64_t first, int64_t last)
      : first(int32_t(first)), last(int32_t(last)), W(int32_t(p.W)),
        step{0, image.pixel_stride, p.W * image.pixel_stride, (p.W + 1) * image.pixel_stride} {}

  // body(corner) for those of the cell at (y, x); kInside: all of them are known to be there.
  template <bool kInside, typename Body>
  DANET_INLINE void visit(int32_t y, int32_t x, const Body& body) const {
    if (kInside || (y >= first && y + 1 < last && uint32_t(x) < uint32_t(W - 1))) {
#pragma GCC unroll 4
      for (int corner = 0; corner < 4; ++corner) body(corner);
    } else {
#pragma GCC unroll 4
      for (int corner = 0; corner < 4; ++corner) {
        int32_t row = y + corner / 2, column = x + corner % 2;
        if (row >= first && row < last && uint32_t(column) < uint32_t(W)) body(corner);
      }
    }
  }
};

// A pointer for each corner, to which a cell's place is added.
template <typename T>
struct Bases {
  T* corner[4];
  Bases(T* image, const Corners& corners)
      : corner{image, image + corners.step[1], image + corners.step[2], image + corners.step[3]} {}
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

// The weights of one group's taps, each to be had in all lanes of a vector, tap after tap.
template <typename A>
struct FromMemory {
  const A* weight[4];
  FromMemory(const Taps<A>& taps, int64_t first)
      : weight{taps.weight[0] + first, taps.weight[1] + first, taps.weight[2] + first, taps.weight[3] + first} {}
  DANET_INLINE Vec<A> of(int corner) const { return broadcast<A>(*weight[corner]); }
  DANET_INLINE void next() {
    for (int corner = 0; corner < 4; ++corner) ++weight[corner];
  }
};
#if defined(__AVX512F__)
// Of at most as many taps as there are lanes: a permutation of a register costs less than a load.
template <typename A>
struct FromRegisters {
  Vec<A> weight[4];
  IntVec<A> tap{};
  FromRegisters(const Taps<A>& taps, int64_t first)
      : weight{load(taps.weight[0] + first), load(taps.weight[1] + first), load(taps.weight[2] + first),
               load(taps.weight[3] + first)} {}
  DANET_INLINE Vec<A> of(int corner) const { return spread(weight[corner], tap); }
  DANET_INLINE void next() { tap += 1; }
};
#endif

// out[0..C) of `groups` groups: the sums over their taps. Not inlined: it wants all registers.
template <typename Weights, bool kInside, typename T, typename A>
__attribute__((noinline)) void gather_with(
    const Taps<A>& taps, int64_t groups, int64_t K, bool softmax, const Corners corners, const T* image, T* out,
    int64_t C) {
  constexpr int L = kLanes<A>;
  for (int64_t first = 0; first < groups * K; first += K, image += C, out += C) {
    const Vec<A> factor = broadcast<A>(softmax ? 1 / sum_of(taps.m + first, K) : A(1));
    for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
      constexpr int V = decltype(block)::vectors;
      constexpr int kChains = V >= 4 ? 1 : 4 / V;  // an addition waits for the one before: keep four on their way
      Vec<A> total[kChains][V] = {};
      Weights weights(taps, first);
      for (int64_t j = first; j < first + K; ++j, weights.next()) {
        const T* cell = image + c + taps.cell[j];
        corners.template visit<kInside>(taps.y[j], taps.x[j], [&](int corner) __attribute__((always_inline)) {
          const Vec<A> weight = weights.of(corner);
          const T* from = in_register(cell + corners.step[corner]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) total[corner % kChains][v] += weight * load_channels(from + v * L, count);
        });
        if (!kInside && taps.weight[0][j] != taps.weight[0][j])  // NaN, wherever it lies
          for (int v = 0; v < V; ++v) total[0][v] += taps.weight[0][j];
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

template <bool kInside, typename T, typename A>
DANET_INLINE void gather(
    const Taps<A>& taps, int64_t groups, int64_t K, bool softmax, const Corners& corners, const T* image, T* out,
    int64_t C) {
#if defined(__AVX512F__)
  if constexpr (kSpreads<A>)
    if (K <= kLanes<A>) return gather_with<FromRegisters<A>, kInside>(taps, groups, K, softmax, corners, image, out, C);
#endif
  gather_with<FromMemory<A>, kInside>(taps, groups, K, softmax, corners, image, out, C);
}

}  // namespace
}  // namespace danet
