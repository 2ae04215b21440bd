// SDC's taps of one pixel, prepared together for the CPU kernels, a tap a vector lane: the softmax, where each tap's cell
// lies, and the weights of its corners. It all stays in the first-level cache.
#pragma once

#include "../common/vec.h"
#include "sdc.h"

namespace danet {
namespace {

// Prepared taps of the groups of one pixel that are worked on together, J = groups * K <= kMaxTaps. Arrays of constant
// size, so that one register finds them all; a vector may be stored at any tap.
template <typename A>
struct Taps {
  static constexpr int kRoom = kMaxTaps + 16;
  alignas(64) A tap_y[kRoom];      // sdc_tap of every tap
  A tap_x[kRoom];
  A weight[4][kRoom];              // of the corners, times m
  A m[kRoom];                      // the softmax, forward its numerators; or the mask
  A cell_y[kRoom], cell_x[kRoom];  // the place in the cell, 0 to 1
  A dot[4 * kRoom];                // [J, 4] backward: grad_output times the corners
  A grad_m[kRoom];
  int32_t y[kRoom], x[kRoom];      // the cell's top left corner, -2 to H and -2 to W
  int32_t cell[kRoom];             // where that pixel begins in the image, in elements
  int32_t grad_cell[kRoom];        // backward: the same in grad_input
  int64_t groups;

  explicit Taps(const SdcParams& p) : groups(kMaxTaps / p.K < p.G ? kMaxTaps / p.K : p.G) {
    for (int64_t j = 0; j < kRoom; ++j) {
      tap_y[j] = A(sdc_tap(p, 0, j % p.K));
      tap_x[j] = A(sdc_tap(p, 1, j % p.K));
    }
  }
};

// Calls body(j) for vectors of taps that cover [0, J), J >= L; the last one may overlap the one before.
template <int L, typename Body>
DANET_INLINE void for_vectors(int64_t J, const Body& body) {
  for (int64_t j = 0; j < J; j += L) body(j + L <= J ? j : J - L);
}

// A row of values that can be read in whole vectors: itself, or a padded copy where it is shorter than one.
template <typename T, int kCount>
struct Readable {
  T copy[kCount];
  const T* values;

  DANET_INLINE Readable(const T* p, int64_t count) : values(p) {
    if (count >= kCount) return;
    for (int i = 0; i < kCount; ++i) copy[i] = i < count ? p[i] : T{};
    values = copy;
  }
};

template <typename A, typename T>
DANET_INLINE void load_offsets(const T* offset, int64_t j, Vec<A>& y, Vec<A>& x) {
  Vec<A> low = load(offset + 2 * j), high = load(offset + 2 * j + kLanes<A>);
  y = pick<EvenLanes>(low, high);
  x = pick<OddLanes>(low, high);
}

// In three chains of additions, which would otherwise wait for one another.
template <typename A>
DANET_INLINE A sum_of(const A* values, int64_t count) {
  A sum[3] = {0, 0, 0};
  int64_t j = 0;
  for (; j + 3 <= count; j += 3)
    for (int chain = 0; chain < 3; ++chain) sum[chain] += values[j + chain];
  for (; j < count; ++j) sum[0] += values[j];
  return sum[0] + sum[1] + sum[2];
}

// Logits up to here need no maximum: their exponentials neither overflow nor vanish.
constexpr float kModerate = 20;

// The softmax's numerators of `groups` groups of K logits, to m.
template <typename A>
void stable_exp(A* m, int64_t groups, int64_t K) {
  for (int64_t g = 0; g < groups; ++g, m += K) {
    A top = m[0];
    for (int64_t k = 1; k < K; ++k) top = m[k] > top || m[k] != m[k] ? m[k] : top;
    // A row of its own: the vectors of one group would run into the next.
    for (int64_t k = 0; k < K; ++k) {
      A shifted = m[k] - top;
      m[k] = exp(broadcast<A>(shifted))[0];
    }
  }
}

// Offsets and logits of some groups at one output pixel, and the places that its taps have at offset zero.
template <typename A, typename T>
struct Place {
  const T *offset, *mask;
  A start_y, start_x;
  int64_t J;
  uint32_t stride, grad_stride;  // elements from pixel to pixel of the input and of grad_input
};

// Fills taps from taps.m; returns whether all their cells lie inside the image. With kExp, taps.m is filled too, from the
// mask: right if `moderate` says that no logit was too large for it.
template <bool kBackward, bool kExp, typename A, typename T>
DANET_INLINE bool fill(const SdcParams& p, Taps<A>& taps, const Place<A, T>& place, bool* moderate = nullptr) {
  constexpr int L = kLanes<A>;
  const Readable<T, L> masks(place.mask, place.J);
  const Readable<T, 2 * L> offsets(place.offset, 2 * place.J);
  const A scale = A(p.offset_scale);
  const uint32_t W = uint32_t(p.W);
  UIntVec<A> last_row{}, last_column{};  // as unsigned numbers negative ones are beyond every image
  Bits<A> largest{};                     // and a NaN's bits above every number
  for_vectors<L>(place.J < L ? L : place.J, [&](int64_t j) __attribute__((always_inline)) {
    Vec<A> m;
    if (kExp) {
      m = load(masks.values + j);
      largest = unsigned_max(largest, (Bits<A>)m & ~(Bits<A>)broadcast<A>(A(-0.0)));
      m = exp_moderate(m);
      store(taps.m + j, m);
    } else {
      m = load(taps.m + j);
    }
    Vec<A> dy, dx;
    load_offsets<A>(offsets.values, j, dy, dx);
    Vec<A> y = (load(taps.tap_y + j) + place.start_y) + scale * dy;
    Vec<A> x = (load(taps.tap_x + j) + place.start_x) + scale * dx;
    // A NaN goes into the weights. Far away is as good as just outside.
    if (!kBackward) m = (y != y) | (x != x) ? y + x : m;
    y = clamp<A>(y, -2, A(p.H));
    x = clamp<A>(x, -2, A(p.W));
    Vec<A> cell_y = floor<A>(y), cell_x = floor<A>(x);
    IntVec<A> row = to_int<A>(cell_y), column = to_int<A>(cell_x);
    last_row = unsigned_max(last_row, (UIntVec<A>)row);
    last_column = unsigned_max(last_column, (UIntVec<A>)column);
    y -= cell_y;
    x -= cell_x;
    Vec<A> weight[4];
    bilinear(y, x, m, weight);
    for (int corner = 0; corner < 4; ++corner) store(taps.weight[corner] + j, weight[corner]);
    // Unsigned, because it may overflow for cells outside, where it is not used.
    UIntVec<A> pixel = (UIntVec<A>)row * W + (UIntVec<A>)column, cell = pixel * place.stride;
    std::memcpy(taps.cell + j, &cell, sizeof cell);
    std::memcpy(taps.y + j, &row, sizeof row);
    std::memcpy(taps.x + j, &column, sizeof column);
    if (kBackward) {
      UIntVec<A> grad_cell = pixel * place.grad_stride;
      std::memcpy(taps.grad_cell + j, &grad_cell, sizeof grad_cell);
      store(taps.cell_y + j, y);
      store(taps.cell_x + j, x);
    }
  });
  if (kExp) *moderate = !any<A>((Mask<A>)(largest > (Bits<A>)broadcast<A>(kModerate)));
  return !any<A>(__builtin_convertvector(
      (last_row >= uint32_t(p.H - 1)) | (last_column >= uint32_t(p.W - 1)), Mask<A>));
}

// The numerators of the softmax over each group's taps, or the mask itself, to taps.m.
template <typename A, typename T>
DANET_INLINE void fill_m(const SdcParams& p, Taps<A>& taps, const Place<A, T>& place) {
  constexpr int L = kLanes<A>;
  const Readable<T, L> masks(place.mask, place.J);
  Bits<A> largest{};
  for_vectors<L>(place.J < L ? L : place.J, [&](int64_t j) __attribute__((always_inline)) {
    Vec<A> m = load(masks.values + j);
    largest = unsigned_max(largest, (Bits<A>)m & ~(Bits<A>)broadcast<A>(A(-0.0)));
    store(taps.m + j, p.softmax ? exp(m) : m);
  });
  if (p.softmax && any<A>((Mask<A>)(largest > (Bits<A>)broadcast<A>(kModerate)))) {
    for (int64_t j = 0; j < place.J; ++j) taps.m[j] = to_compute(place.mask[j]);
    stable_exp(taps.m, place.J / p.K, p.K);
  }
}

// Prepares the groups at `place`; returns whether all their cells lie inside the image. Forward leaves the softmax's
// division to the end of the sums; backward needs the quotients themselves.
template <bool kBackward, typename A, typename T>
DANET_INLINE bool prepare(const SdcParams& p, Taps<A>& taps, const Place<A, T>& place) {
  if (!kBackward && p.softmax) {
    bool moderate, inside = fill<false, true>(p, taps, place, &moderate);
    if (moderate) return inside;
  }
  fill_m(p, taps, place);
  if (kBackward && p.softmax)
    for (A* m = taps.m; m < taps.m + place.J; m += p.K) {
      const A factor = 1 / sum_of(m, p.K);
      for (int64_t k = 0; k < p.K; ++k) m[k] *= factor;
    }
  return fill<kBackward, false>(p, taps, place);
}

// The taps of output row y of image n, pixel after pixel: body(i, g, groups, inside) with the pixel's index, the first of
// the prepared groups, their number, and whether all their cells lie inside the image.
template <bool kBackward, typename T, typename Body>
DANET_INLINE void for_row(
    const SdcParams& p, Taps<Compute<T>>& taps, const ImageView& offset, const ImageView& mask, int64_t stride,
    int64_t grad_stride, int64_t n, int64_t y, const Body& body) {
  using A = Compute<T>;
  const A start_y = A(sdc_start(p, 0)) + A(y * p.stride[0]), start_x = A(sdc_start(p, 1));
  for (int64_t x = 0; x < p.W_out; ++x)
    for (int64_t g = 0; g < p.G; g += taps.groups) {
      const int64_t i = y * p.W_out + x, groups = g + taps.groups <= p.G ? taps.groups : p.G - g;
      const Place<A, T> place{
          offset.pixel<T>(n, i) + 2 * g * p.K, mask.pixel<T>(n, i) + g * p.K, start_y, start_x + A(x * p.stride[1]),
          groups * p.K, uint32_t(stride), uint32_t(grad_stride)};
      body(i, g, groups, prepare<kBackward>(p, taps, place));
    }
}

}  // namespace
}  // namespace danet
