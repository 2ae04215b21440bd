// SDC's taps of one pixel, prepared together for the CPU kernels, a tap a vector lane: the softmax, where each tap's cell
// lies, and the weights of its corners. It all stays in the first-level cache.
#pragma once

#include "../common/lanes.h"
#include "sdc.h"

namespace danet {
namespace {

// Prepared taps of the groups of one pixel that are worked on together, J = groups * K <= kMaxTaps. Arrays of constant
// size, so that one register finds them all; a vector may be stored at any tap.
template <typename A>
struct Taps {
  static constexpr int kRoom = kMaxTaps + 16;
  alignas(64) A tap_y[kRoom];  // sdc_tap of every tap
  A tap_x[kRoom];
  A weight[4][kRoom];              // of the corners, times m
  A m[kRoom];                      // the softmax, forward its numerators; or the mask
  A cell_y[kRoom], cell_x[kRoom];  // the place in the cell, 0 to 1
  int32_t y[kRoom], x[kRoom];      // the cell's top left corner, -2 to H and -2 to W
  int32_t channel[kRoom];          // the first one of the tap's group
  int32_t cell[kRoom];             // where that channel of that corner is in the image, in elements
  int32_t grad_cell[kRoom];        // backward: the same in grad_input
  A dot[4 * kRoom];                // backward: grad_output times the corners, laid out as `project` says
  A grad_m[kRoom];
  A of_group[kRoom];  // backward: a value of each group, for every tap of it
  int64_t groups;

  explicit Taps(const SdcParams& p) : groups(kMaxTaps / p.K < p.G ? kMaxTaps / p.K : p.G) {
    if (p.offset_group != 2 * p.K || p.mask_group != p.K) groups = 1;  // they do not lie side by side
    // Whole vectors of those that there can be: most calls are small, and all of the room is not.
    for (int64_t j = 0; j < groups * p.K + kLanes<A>; ++j) {
      const int64_t g = j / p.K, k = j - g * p.K;
      tap_y[j] = A(sdc_tap(p, 0, k));
      tap_x[j] = A(sdc_tap(p, 1, k));
      channel[j] = int32_t(g * (p.C / p.G));
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
DANET_INLINE void load_offsets(const SdcParams& p, const T* offset, int64_t j, Vec<A>& y, Vec<A>& x) {
  const Vec<A> low = load(offset + 2 * j), high = load(offset + 2 * j + kLanes<A>);
  const Vec<A> first = pick<EvenLanes>(low, high), second = pick<OddLanes>(low, high);
  y = p.x_first ? second : first;
  x = p.x_first ? first : second;
}

// The sum of `count` values, kCount of them if that is not 0, in three chains of additions that do not wait for one
// another.
template <int kCount, typename A>
DANET_INLINE A sum_of(const A* values, int64_t count) {
  if (kCount > 0) count = kCount;
  A sum[3] = {0, 0, 0};
  int64_t j = 0;
#pragma GCC unroll 3
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
      m = exp_unchecked(m);
      store(taps.m + j, m);
    } else {
      m = load(taps.m + j);
    }
    Vec<A> dy, dx;
    load_offsets<A>(p, offsets.values, j, dy, dx);
    Vec<A> y = (load(taps.tap_y + j) + place.start_y) + scale * dy;
    Vec<A> x = (load(taps.tap_x + j) + place.start_x) + scale * dx;
    // A NaN goes into the weights. Far away is as good as just outside.
    if (!kBackward) m = (y != y) | (x != x) ? y + x : m;
    y = clamp<A>(y, -2, A(p.H));
    x = clamp<A>(x, -2, A(p.W));
    Vec<A> cell_y, cell_x;
    IntVec<A> row = floor<A>(y, cell_y), column = floor<A>(x, cell_x);
    last_row = unsigned_max(last_row, (UIntVec<A>)row);
    last_column = unsigned_max(last_column, (UIntVec<A>)column);
    y -= cell_y;
    x -= cell_x;
    Vec<A> weight[4];
    bilinear(y, x, m, weight);
    for (int corner = 0; corner < 4; ++corner) store(taps.weight[corner] + j, weight[corner]);
    // Unsigned, because it may overflow for cells outside, where it is not used.
    const UIntVec<A> pixel = (UIntVec<A>)row * W + (UIntVec<A>)column;
    const UIntVec<A> channel = bits_as<UIntVec<A>>(taps.channel + j), cell = pixel * place.stride + channel;
    std::memcpy(taps.cell + j, &cell, sizeof cell);
    std::memcpy(taps.y + j, &row, sizeof row);
    std::memcpy(taps.x + j, &column, sizeof column);
    if (kBackward) {
      const UIntVec<A> grad_cell = pixel * place.grad_stride + channel;
      std::memcpy(taps.grad_cell + j, &grad_cell, sizeof grad_cell);
      store(taps.cell_y + j, y);
      store(taps.cell_x + j, x);
    }
  });
  if (kExp) *moderate = !any<A>((Mask<A>)(largest > (Bits<A>)broadcast<A>(kModerate)));
  return !any<A>(
      __builtin_convertvector((last_row >= uint32_t(p.H - 1)) | (last_column >= uint32_t(p.W - 1)), Mask<A>));
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

// taps.of_group[j] = value(first) for every tap j of the group whose taps begin at `first`.
template <typename A, typename Value>
DANET_INLINE void spread_over_groups(Taps<A>& taps, int64_t J, int64_t K, const Value& value) {
  for (int64_t first = 0; first < J; first += K) {
    const Vec<A> v = broadcast<A>(value(first));
    for (int64_t k = 0; k < K; k += kLanes<A>)
      store(taps.of_group + first + k, v);  // the next group's are written later
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
  if (kBackward && p.softmax) {
    spread_over_groups(taps, place.J, p.K, [&](int64_t first) { return 1 / sum_of<0>(taps.m + first, p.K); });
    for (int64_t j = 0; j < place.J; j += kLanes<A>) store(taps.m + j, load(taps.m + j) * load(taps.of_group + j));
  }
  return fill<kBackward, false>(p, taps, place);
}

// Whether a coordinate of the cells' first corners is before the first, or behind the last, that has both corners inside;
// near: one of them is.
template <typename A>
struct Outside {
  Mask<A> before, behind, near;

  Outside(IntVec<A> place, int32_t first, int32_t last)
      : before(lanes(place < first)), behind(lanes(place > last - 2)),
        near(lanes((place >= first - 1) & (place < last))) {}

  // Values of the two corners as those of the two inside that their places are nearest to, and back.
  DANET_INLINE void fold(Vec<A>& one, Vec<A>& two) const { exchange(before, behind, one, two); }
  DANET_INLINE void unfold(Vec<A>& one, Vec<A>& two) const { exchange(behind, before, one, two); }

 private:
  static DANET_INLINE Mask<A> lanes(IntVec<A> condition) { return __builtin_convertvector(condition, Mask<A>); }
  static DANET_INLINE void exchange(Mask<A> up, Mask<A> down, Vec<A>& one, Vec<A>& two) {
    const Vec<A> old = one;
    one = up ? two : down ? Vec<A>{} : one;
    two = down ? old : up ? Vec<A>{} : two;
  }
};

// Moves the cells that do not lie wholly in rows [first, last) of the image to the nearest that do, and with kWeights their
// weights to the corners that stay where they were: what is outside gets the weight zero, or NaN where it was not finite.
template <bool kWeights, typename A>
DANET_INLINE void fold(
    const SdcParams& p, Taps<A>& taps, int64_t J, int64_t first, int64_t last, uint32_t stride, int32_t* cells) {
  auto nearest = [](IntVec<A> place, int64_t first, int64_t last) __attribute__((always_inline)) {
    place = place > int32_t(last - 2) ? int32_t(last - 2) - IntVec<A>{} : place;
    return (UIntVec<A>)(place < int32_t(first) ? int32_t(first) - IntVec<A>{} : place);
  };
  for (int64_t j = 0; j < J; j += kLanes<A>) {
    const IntVec<A> y = bits_as<IntVec<A>>(taps.y + j), x = bits_as<IntVec<A>>(taps.x + j);
    if (kWeights) {
      const Outside<A> rows(y, int32_t(first), int32_t(last)), columns(x, 0, int32_t(p.W));
      const Vec<A> near = (rows.near & columns.near) ? broadcast<A>(1) : Vec<A>{};
      Vec<A> weight[4];
      for (int corner = 0; corner < 4; ++corner) weight[corner] = load(taps.weight[corner] + j) * near;
      rows.fold(weight[0], weight[2]);
      rows.fold(weight[1], weight[3]);
      columns.fold(weight[0], weight[1]);
      columns.fold(weight[2], weight[3]);
      for (int corner = 0; corner < 4; ++corner) store(taps.weight[corner] + j, weight[corner]);
    }
    const UIntVec<A> cell =
        (nearest(y, first, last) * uint32_t(p.W) + nearest(x, 0, p.W)) * stride + bits_as<UIntVec<A>>(taps.channel + j);
    std::memcpy(cells + j, &cell, sizeof cell);
  }
}

// The groups of output row y of image n, pixel after pixel: body(x, g, place) with the pixel, and the first and the place
// of the groups that are worked on together.
template <typename T, typename Body>
DANET_INLINE void for_row(
    const SdcParams& p, const Taps<Compute<T>>& taps, const ImageView& offset, const ImageView& mask, int64_t stride,
    int64_t grad_stride, int64_t n, int64_t y, const Body& body) {
  using A = Compute<T>;
  const A start_y = A(sdc_start(p, 0)) + A(y * p.stride[0]), start_x = A(sdc_start(p, 1));
  const T *offsets = offset.pixel<T>(n, y * p.W_out), *masks = mask.pixel<T>(n, y * p.W_out);
  for (int64_t x = 0; x < p.W_out; ++x, offsets += offset.pixel_stride, masks += mask.pixel_stride)
    for (int64_t g = 0; g < p.G; g += taps.groups) {
      const int64_t groups = g + taps.groups <= p.G ? taps.groups : p.G - g;
      const Place<A, T> place{
          offsets + g * p.offset_group,
          masks + g * p.mask_group,
          start_y,
          start_x + A(x * p.stride[1]),
          groups * p.K,
          uint32_t(stride),
          uint32_t(grad_stride)};
      body(x, g, place);
    }
}

}  // namespace
}  // namespace danet
