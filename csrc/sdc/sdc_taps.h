// Prepares the taps of one output pixel for the CPU kernels of SDC (sdc.h): computes the softmax, the cell that each
// tap samples, and the weights of the cell's corners. Each vector lane prepares one tap. The table of all taps stays in
// the L1 cache.
//
// In the templates of this folder, T is the dtype of the tensors, and A = Compute<T> is the type of the arithmetic.
#pragma once

#include "../common/lanes.h"
#include "../common/vec_math.h"
#include "sdc.h"

namespace danet {
namespace {

// The prepared taps of the groups of one pixel that are computed together: num_taps = groups * K <= kMaxTaps. The
// arrays have constant sizes, so that one register addresses all of them. Their 16 extra elements allow a whole vector
// to be stored at any tap.
template <typename A>
struct TapTable {
  static constexpr int kCapacity = kMaxTaps + 16;
  alignas(64) A tap_y[kCapacity];  // sdc_tap_distance of each tap
  A tap_x[kCapacity];
  A weight[4][kCapacity];                          // weights of the corners, times m
  A m[kCapacity];                                  // the mask, or its softmax (in forward only the numerators)
  A fraction_y[kCapacity], fraction_x[kCapacity];  // backward: position in the cell, 0 to 1
  int32_t row[kCapacity], column[kCapacity];       // top left corner of the cell, from -2 to H and -2 to W
  int32_t channel[kCapacity];                      // first channel of the tap's group
  int32_t out_channel[kCapacity];                  // the same in out, see SdcParams::tap_stride
  int32_t cell[kCapacity];                         // element offset in the image of that channel at the top left corner
  int32_t grad_cell[kCapacity];                    // backward: the same in grad_input
  A dot[4 * kCapacity];                            // backward: dot products of grad_output and the corners
  A grad_m[kCapacity];                             // backward: gradient of m
  // Backward: scratch, one value per group, repeated for its taps: 1 / (sum of the softmax's numerators), later
  // sum_k m_k * grad_m_k.
  A group_value[kCapacity];
  int64_t groups;  // groups that are computed together

  explicit TapTable(const SdcParams& p) : groups(kMaxTaps / p.K < p.G ? kMaxTaps / p.K : p.G) {
    // Fill the constant columns for the taps that can occur, rounded up to whole vectors.
    for (int64_t j = 0; j < groups * p.K + kLanes<A>; ++j) {
      const int64_t g = j / p.K, k = j - g * p.K;
      tap_y[j] = A(sdc_tap_distance(p, 0, k));
      tap_x[j] = A(sdc_tap_distance(p, 1, k));
      channel[j] = int32_t(g * (p.C / p.G));
      out_channel[j] = int32_t(channel[j] + k * p.tap_stride);
    }
  }
};

// Calls body(j) for vectors of L taps that cover [0, num_taps), where num_taps >= L. The last vector may overlap the
// one before.
template <int L, typename Body>
DANET_INLINE void for_vectors(int64_t num_taps, const Body& body) {
  for (int64_t j = 0; j < num_taps; j += L) body(j + L <= num_taps ? j : num_taps - L);
}

// A row of values that can be read in whole vectors of kCount: the row itself, or a padded copy if it is shorter.
template <typename T, int kCount>
struct PaddedValues {
  T copy[kCount];
  const T* values;

  DANET_INLINE PaddedValues(const T* p, int64_t count) : values(p) {
    if (count >= kCount) return;
    for (int i = 0; i < kCount; ++i) copy[i] = i < count ? p[i] : T{};
    values = copy;
  }
};

// Loads the offsets of a vector of taps, the first of which is tap j.
template <typename A, typename T>
DANET_INLINE void load_offsets(const SdcParams& p, const T* offset, int64_t j, Vec<A>& y, Vec<A>& x) {
  const Vec<A> low = load(offset + 2 * j), high = load(offset + 2 * j + kLanes<A>);
  const Vec<A> first = pick<EvenLanes>(low, high), second = pick<OddLanes>(low, high);
  y = p.x_first ? second : first;
  x = p.x_first ? first : second;
}

// The sum of `count` values (kCount if that is not 0), in three independent chains of additions to hide their latency.
template <int kCount, typename A>
DANET_INLINE A sum_values(const A* values, int64_t count) {
  if (kCount > 0) count = kCount;
  A sum[3] = {0, 0, 0};
  int64_t j = 0;
#pragma GCC unroll 3
  for (; j + 3 <= count; j += 3)
    for (int chain = 0; chain < 3; ++chain) sum[chain] += values[j + chain];
  for (; j < count; ++j) sum[0] += values[j];
  return sum[0] + sum[1] + sum[2];
}

// Logits up to this magnitude need no subtraction of their maximum: the exponentials neither overflow nor vanish.
constexpr float kMaxUnshiftedLogit = 20;

// Replaces `groups` groups of K logits in m by the numerators of their softmax, exp(logit - maximum).
template <typename A>
void exp_shifted(A* m, int64_t groups, int64_t K) {
  for (int64_t g = 0; g < groups; ++g, m += K) {
    A top = m[0];
    for (int64_t k = 1; k < K; ++k) top = m[k] > top || m[k] != m[k] ? m[k] : top;
    // One value at a time, because a vector would run into the next group.
    for (int64_t k = 0; k < K; ++k) {
      A shifted = m[k] - top;
      m[k] = exp(broadcast<A>(shifted))[0];
    }
  }
}

// The offsets [groups, K, 2] and the mask [groups, K] of the taps at one output pixel, without gaps between the groups,
// and the center of its window in the input.
template <typename A, typename T>
struct TapInputs {
  const T *offset, *mask;
  A center_y, center_x;
  int64_t num_taps;
  uint32_t stride, grad_stride;  // pixel strides of input and grad_input, in elements
};

// Fills the cells of the table from the offsets, and the corner weights from the cells and taps.m. Returns whether all
// cells lie inside the image. With kExp, first fills taps.m with exp(mask), and sets *in_range to whether all logits
// are small enough for that; if they are not, the table is invalid.
template <bool kBackward, bool kExp, typename A, typename T>
DANET_INLINE bool fill_table(
    const SdcParams& p, TapTable<A>& taps, const TapInputs<A, T>& source, bool* in_range = nullptr) {
  constexpr int L = kLanes<A>;
  const PaddedValues<T, L> masks(source.mask, source.num_taps);
  const PaddedValues<T, 2 * L> offsets(source.offset, 2 * source.num_taps);
  const A scale = A(p.offset_scale);
  const uint32_t W = uint32_t(p.W);
  // Maxima over the taps. As unsigned integers, negative indices and the bits of a NaN exceed all valid values.
  UIntVec<A> last_row{}, last_column{};
  Bits<A> largest{};
  for_vectors<L>(source.num_taps < L ? L : source.num_taps, [&](int64_t j) __attribute__((always_inline)) {
    // Compute the numerators of the softmax.
    Vec<A> m;
    if (kExp) {
      m = load(masks.values + j);
      largest = unsigned_max(largest, (Bits<A>)m & ~(Bits<A>)broadcast<A>(A(-0.0)));
      m = exp_unchecked(m);
      store(taps.m + j, m);
    } else {
      m = load(taps.m + j);
    }
    // Compute the coordinates. Put a NaN into the weights, and clamp coordinates far outside to just outside.
    Vec<A> dy, dx;
    load_offsets<A>(p, offsets.values, j, dy, dx);
    Vec<A> y = (load(taps.tap_y + j) + source.center_y) + scale * dy;
    Vec<A> x = (load(taps.tap_x + j) + source.center_x) + scale * dx;
    if (!kBackward) m = (y != y) | (x != x) ? y + x : m;
    y = clamp<A>(y, -2, A(p.H));
    x = clamp<A>(x, -2, A(p.W));
    // DCNv3 and DCNv4 ignore samples at -1, whose offsets have gradients in sdc.
    if (p.x_first) {
      y = y > -1 ? y : broadcast<A>(-2);
      x = x > -1 ? x : broadcast<A>(-2);
    }
    // Find the cell.
    Vec<A> floor_y, floor_x;
    IntVec<A> row = floor<A>(y, floor_y), column = floor<A>(x, floor_x);
    last_row = unsigned_max(last_row, (UIntVec<A>)row);
    last_column = unsigned_max(last_column, (UIntVec<A>)column);
    // Compute the weights of the corners.
    y -= floor_y;
    x -= floor_x;
    Vec<A> weight[4];
    bilinear(y, x, m, weight);
    for (int corner = 0; corner < 4; ++corner) store(taps.weight[corner] + j, weight[corner]);
    // Compute the address of the cell. Unsigned, because it may overflow for cells outside, where it is not used.
    const UIntVec<A> pixel = (UIntVec<A>)row * W + (UIntVec<A>)column;
    const UIntVec<A> channel = bits_as<UIntVec<A>>(taps.channel + j), cell = pixel * source.stride + channel;
    std::memcpy(taps.cell + j, &cell, sizeof cell);
    std::memcpy(taps.row + j, &row, sizeof row);
    std::memcpy(taps.column + j, &column, sizeof column);
    if (kBackward) {
      const UIntVec<A> grad_cell = pixel * source.grad_stride + channel;
      std::memcpy(taps.grad_cell + j, &grad_cell, sizeof grad_cell);
      store(taps.fraction_y + j, y);
      store(taps.fraction_x + j, x);
    }
  });
  if (kExp) *in_range = !any<A>((Mask<A>)(largest > (Bits<A>)broadcast<A>(kMaxUnshiftedLogit)));
  return !any<A>(
      __builtin_convertvector((last_row >= uint32_t(p.H - 1)) | (last_column >= uint32_t(p.W - 1)), Mask<A>));
}

// Fills m with the mask of num_taps taps, or with the numerators of its softmax over the K taps of each group.
template <typename A, typename T>
DANET_INLINE void fill_mask(const T* mask, int64_t num_taps, int64_t K, bool softmax, A* m) {
  constexpr int L = kLanes<A>;
  const PaddedValues<T, L> masks(mask, num_taps);
  Bits<A> largest{};
  for_vectors<L>(num_taps < L ? L : num_taps, [&](int64_t j) __attribute__((always_inline)) {
    const Vec<A> values = load(masks.values + j);
    largest = unsigned_max(largest, (Bits<A>)values & ~(Bits<A>)broadcast<A>(A(-0.0)));
    store(m + j, softmax ? exp(values) : values);
  });
  if (softmax && any<A>((Mask<A>)(largest > (Bits<A>)broadcast<A>(kMaxUnshiftedLogit)))) {
    for (int64_t j = 0; j < num_taps; ++j) m[j] = to_compute(mask[j]);
    exp_shifted(m, num_taps / K, K);
  }
}

// taps.group_value[j] = value(first) for every tap j of the group whose taps begin at `first`.
template <typename A, typename Value>
DANET_INLINE void fill_per_group(TapTable<A>& taps, int64_t num_taps, int64_t K, const Value& value) {
  for (int64_t first = 0; first < num_taps; first += K) {
    const Vec<A> v = broadcast<A>(value(first));
    for (int64_t k = 0; k < K; k += kLanes<A>)
      store(taps.group_value + first + k, v);  // may overwrite the next group, which the next iteration writes
  }
}

// Fills the table from `source`. Returns whether all cells lie inside the image. The forward pass divides the sums over
// the taps by the denominator of the softmax, so taps.m holds only the numerators; the backward pass needs the softmax
// itself.
template <bool kBackward, typename A, typename T>
DANET_INLINE bool prepare_taps(const SdcParams& p, TapTable<A>& taps, const TapInputs<A, T>& source) {
  if (!kBackward && p.softmax) {
    bool in_range, inside = fill_table</*kBackward=*/false, /*kExp=*/true>(p, taps, source, &in_range);
    if (in_range) return inside;
  }
  fill_mask(source.mask, source.num_taps, p.K, p.softmax, taps.m);
  if (kBackward && p.softmax) {
    fill_per_group(taps, source.num_taps, p.K, [&](int64_t first) { return 1 / sum_values<0>(taps.m + first, p.K); });
    for (int64_t j = 0; j < source.num_taps; j += kLanes<A>)
      store(taps.m + j, load(taps.m + j) * load(taps.group_value + j));
  }
  return fill_table<kBackward, /*kExp=*/false>(p, taps, source);
}

// Tells, for a vector of cells and along one axis, which of them lie partly or wholly outside [first, last). `index` is
// the row or column of a cell's first corner. If it is from first to last - 2, both corners are inside. Bound: int32_t,
// or IntVec<A> if each cell has its own bound.
template <typename A>
struct BorderMasks {
  Mask<A> before, after, near;  // index < first; index > last - 2; a corner is inside

  template <typename Bound>
  BorderMasks(IntVec<A> index, int32_t first, Bound last)
      : before(lanes(index < first)), after(lanes(index > last - 2)),
        near(lanes((index >= first - 1) & (index < last))) {}

  // Moves the values of the two corners to the nearest pair of corners inside, and back.
  DANET_INLINE void shift_values(Vec<A>& one, Vec<A>& two) const { exchange(before, after, one, two); }
  DANET_INLINE void unshift_values(Vec<A>& one, Vec<A>& two) const { exchange(after, before, one, two); }

 private:
  static DANET_INLINE Mask<A> lanes(IntVec<A> condition) { return __builtin_convertvector(condition, Mask<A>); }
  static DANET_INLINE void exchange(Mask<A> up, Mask<A> down, Vec<A>& one, Vec<A>& two) {
    const Vec<A> old = one;
    one = up ? two : down ? Vec<A>{} : one;
    two = down ? old : up ? Vec<A>{} : two;
  }
};

// Moves cells that lie partly or wholly outside rows [first, last), or outside the columns of the image, to the nearest
// cell inside, so that all corners can be read. With kWeights, each weight moves with its pixel: corners of the new
// cell that were not corners of the old cell get the weight zero, or NaN if the weight was not finite.
template <bool kWeights, typename A>
DANET_INLINE void clamp_cells(
    const SdcParams& p, TapTable<A>& taps, int64_t num_taps, int64_t first, int64_t last, uint32_t stride,
    int32_t* cells) {
  auto nearest = [](IntVec<A> index, int64_t first, int64_t last) __attribute__((always_inline)) {
    index = index > int32_t(last - 2) ? int32_t(last - 2) - IntVec<A>{} : index;
    return (UIntVec<A>)(index < int32_t(first) ? int32_t(first) - IntVec<A>{} : index);
  };
  for (int64_t j = 0; j < num_taps; j += kLanes<A>) {
    const IntVec<A> y = bits_as<IntVec<A>>(taps.row + j), x = bits_as<IntVec<A>>(taps.column + j);
    // Move the weights along with their pixels.
    if (kWeights) {
      const BorderMasks<A> rows(y, int32_t(first), int32_t(last)), columns(x, 0, int32_t(p.W));
      const Vec<A> near = (rows.near & columns.near) ? broadcast<A>(1) : Vec<A>{};
      Vec<A> weight[4];
      for (int corner = 0; corner < 4; ++corner) weight[corner] = load(taps.weight[corner] + j) * near;
      rows.shift_values(weight[0], weight[2]);
      rows.shift_values(weight[1], weight[3]);
      columns.shift_values(weight[0], weight[1]);
      columns.shift_values(weight[2], weight[3]);
      for (int corner = 0; corner < 4; ++corner) store(taps.weight[corner] + j, weight[corner]);
    }
    // Compute the address of the nearest cell inside.
    const UIntVec<A> cell =
        (nearest(y, first, last) * uint32_t(p.W) + nearest(x, 0, p.W)) * stride + bits_as<UIntVec<A>>(taps.channel + j);
    std::memcpy(cells + j, &cell, sizeof cell);
  }
}

// Copies of the offsets and masks, or of their gradients, of the groups that are computed together, without gaps. In
// DCNv4's joint tensor, the offsets of the next group follow the mask of this one.
template <typename T>
struct JoinedGroups {
  T offset[2 * kMaxTaps], mask[kMaxTaps];
  bool is_needed;  // whether there are gaps

  explicit JoinedGroups(const SdcParams& p)
      : is_needed(p.G > 1 && (p.offset_group_stride != 2 * p.K || p.mask_group_stride != p.K)) {}

  // Returns `offsets`, or a copy of them without gaps.
  DANET_INLINE const T* offsets_of(const SdcParams& p, const T* offsets, int64_t groups) {
    if (!is_needed) return offsets;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t j = 0; j < 2 * p.K; ++j) offset[g * 2 * p.K + j] = offsets[g * p.offset_group_stride + j];
    return offset;
  }
  // Returns `masks`, or a copy of them without gaps.
  DANET_INLINE const T* masks_of(const SdcParams& p, const T* masks, int64_t groups) {
    if (!is_needed) return masks;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t k = 0; k < p.K; ++k) mask[g * p.K + k] = masks[g * p.mask_group_stride + k];
    return mask;
  }
  // Writes the copies back to tensors with gaps.
  DANET_INLINE void write(const SdcParams& p, T* offsets, T* masks, int64_t groups) const {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t j = 0; j < 2 * p.K; ++j) offsets[g * p.offset_group_stride + j] = offset[g * 2 * p.K + j];
      for (int64_t k = 0; k < p.K; ++k) masks[g * p.mask_group_stride + k] = mask[g * p.K + k];
    }
  }
};

// Calls body(x, g, source) for every pixel x of output row y of image n, and for every block of taps.groups groups. g
// is the first group of the block; `source` holds the offsets and the mask of the block.
template <typename T, typename Body>
DANET_INLINE void for_row(
    const SdcParams& p, const TapTable<Compute<T>>& taps, const ImageView& offset, const ImageView& mask,
    int64_t stride, int64_t grad_stride, int64_t n, int64_t y, const Body& body) {
  using A = Compute<T>;
  const A center_y = A(sdc_center(p, 0)) + A(y * p.stride[0]), center_x = A(sdc_center(p, 1));
  const T *offsets = offset.pixel<T>(n, y * p.W_out), *masks = mask.pixel<T>(n, y * p.W_out);
  JoinedGroups<T> joined(p);
  for (int64_t x = 0; x < p.W_out; ++x, offsets += offset.pixel_stride, masks += mask.pixel_stride)
    for (int64_t g = 0; g < p.G; g += taps.groups) {
      const int64_t groups = g + taps.groups <= p.G ? taps.groups : p.G - g;
      const TapInputs<A, T> source{
          joined.offsets_of(p, offsets + g * p.offset_group_stride, groups),
          joined.masks_of(p, masks + g * p.mask_group_stride, groups),
          center_y,
          center_x + A(x * p.stride[1]),
          groups * p.K,
          uint32_t(stride),
          uint32_t(grad_stride)};
      body(x, g, source);
    }
}

// The rows [first, last) of the image, within which corners are read or written.
struct CellBounds {
  int32_t first, last, W;
  int64_t stride;

  CellBounds(const SdcParams& p, const ImageView& image, int64_t first, int64_t last)
      : first(int32_t(first)), last(int32_t(last)), W(int32_t(p.W)), stride(image.pixel_stride) {}

  CellBounds(int32_t first, int32_t last, int32_t W, int64_t stride) : first(first), last(last), W(W), stride(stride) {}

  // Whether there are two rows and two columns, so that the corners of a cell are four different pixels.
  bool has_four_pixels() const { return last - first > 1 && W > 1; }

  // Calls body(corner, element) for those corners of the cell (y, x) that lie inside; element is the offset of the
  // corner's pixel.
  template <typename Body>
  DANET_INLINE void visit(int32_t y, int32_t x, const Body& body) const {
    for (int corner = 0; corner < 4; ++corner) {
      const int32_t row = y + corner / 2, column = x + corner % 2;
      if (row >= first && row < last && uint32_t(column) < uint32_t(W))
        body(corner, (int64_t(row) * W + column) * stride);
    }
  }
};

// One pointer per corner. Adding the offset of a cell inside gives the address of its corner. If there is only one row
// or column, both corners lie in it, and only one of them has a weight.
template <typename T>
struct CornerPointers {
  T* corner[4];
  CornerPointers(T* image, const CellBounds& bounds) {
    const int64_t right = bounds.W > 1 ? bounds.stride : 0;
    const int64_t below = bounds.last - bounds.first > 1 ? bounds.W * bounds.stride : 0;
    for (int i = 0; i < 4; ++i) corner[i] = image + i / 2 * below + i % 2 * right;
  }
};

// Splits C channels into blocks of 4, 2 and 1 vectors, and calls body(VectorBlock<V>, c, count) for each block. count
// is 0 for whole vectors, else the number of remaining channels.
template <int V>
struct VectorBlock {
  static constexpr int vectors = V;
};
template <typename A, typename Body>
DANET_INLINE void for_channels(int64_t C, const Body& body) {
  constexpr int L = kLanes<A>;
  int64_t c = 0;
  for (; c + 4 * L <= C; c += 4 * L) body(VectorBlock<4>{}, c, 0);
  if (c + 2 * L <= C) body(VectorBlock<2>{}, c, 0), c += 2 * L;
  if (c + L <= C) body(VectorBlock<1>{}, c, 0), c += L;
  if (c < C) body(VectorBlock<1>{}, c, int(C - c));
}

}  // namespace
}  // namespace danet
