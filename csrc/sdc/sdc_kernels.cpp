// The CPU kernels of SDC. The taps of a pixel are prepared together, a tap a vector lane: softmax, coordinates, corner
// weights. Then, a group at a time, whole vectors of channels are gathered from the four corners of each tap. Nothing
// else is stored: a pixel's prepared taps stay in the first-level cache.
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

// Fills taps from taps.m, or with kExp from the mask by way of it. Without kBorder all cells must lie inside the image
// and all logits be moderate: returns whether that is so, and if not what was filled is worthless.
template <bool kBackward, bool kExp, bool kBorder, typename A, typename T>
DANET_INLINE bool fill(const SdcParams& p, Taps<A>& taps, const Place<A, T>& place) {
  constexpr int L = kLanes<A>;
  const Readable<T, L> masks(place.mask, place.J);
  const Readable<T, 2 * L> offsets(place.offset, 2 * place.J);
  const A scale = A(p.offset_scale);
  const uint32_t W = uint32_t(p.W);
  // As unsigned numbers, negative cells and those of a NaN are beyond every image, and a NaN's bits above every number.
  UIntVec<A> last_row{}, last_column{};
  Bits<A> largest{};
  for_vectors<L>(place.J < L ? L : place.J, [&](int64_t j) __attribute__((always_inline)) {
    Vec<A> m;
    if (kExp) {
      m = load(masks.values + j);
      largest = unsigned_max(largest, (Bits<A>)m & ~(Bits<A>)broadcast<A>(A(-0.0)));
      m = exp(m);
      store(taps.m + j, m);
    } else {
      m = load(taps.m + j);
    }
    Vec<A> dy, dx;
    load_offsets<A>(offsets.values, j, dy, dx);
    Vec<A> y = (load(taps.tap_y + j) + place.start_y) + scale * dy;
    Vec<A> x = (load(taps.tap_x + j) + place.start_x) + scale * dx;
    if (kBorder) {
      // Far away is as good as just outside; a NaN fails the comparisons and goes there too, its NaN into the weights.
      Mask<A> near = (y >= A(-2)) & (y <= A(p.H)) & (x >= A(-2)) & (x <= A(p.W));
      if (!kBackward) m = (y != y) | (x != x) ? y + x : m;
      y = near ? y : broadcast<A>(-2);
      x = near ? x : broadcast<A>(-2);
    }
    Vec<A> cell_y = floor<A>(y), cell_x = floor<A>(x);
    IntVec<A> row = to_int<A>(cell_y), column = to_int<A>(cell_x);
    if (!kBorder) {
      last_row = unsigned_max(last_row, (UIntVec<A>)row);
      last_column = unsigned_max(last_column, (UIntVec<A>)column);
    }
    y -= cell_y;
    x -= cell_x;
    Vec<A> weight[4];
    bilinear(y, x, m, weight);
    for (int corner = 0; corner < 4; ++corner) store(taps.weight[corner] + j, weight[corner]);
    // Unsigned, because it may overflow for cells outside, where it is not used.
    UIntVec<A> pixel = (UIntVec<A>)row * W + (UIntVec<A>)column, cell = pixel * place.stride;
    std::memcpy(taps.cell + j, &cell, sizeof cell);
    if (kBackward) {
      UIntVec<A> grad_cell = pixel * place.grad_stride;
      std::memcpy(taps.grad_cell + j, &grad_cell, sizeof grad_cell);
      store(taps.cell_y + j, y);
      store(taps.cell_x + j, x);
    }
    if (kBackward || kBorder) {
      std::memcpy(taps.y + j, &row, sizeof row);
      std::memcpy(taps.x + j, &column, sizeof column);
    }
  });
  Mask<A> unfit = (Mask<A>)(largest > (Bits<A>)broadcast<A>(kModerate));
  unfit |= __builtin_convertvector(
      (last_row >= uint32_t(p.H - 1)) | (last_column >= uint32_t(p.W - 1)), Mask<A>);
  return !any<A>(unfit);
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
  if (!kBackward && p.softmax && fill<false, true, false>(p, taps, place)) return true;
  fill_m(p, taps, place);
  if (kBackward && p.softmax)
    for (A* m = taps.m; m < taps.m + place.J; m += p.K) {
      const A factor = 1 / sum_of(m, p.K);
      for (int64_t k = 0; k < p.K; ++k) m[k] *= factor;
    }
  if ((kBackward || !p.softmax) && fill<kBackward, false, false>(p, taps, place)) return true;
  fill<kBackward, false, true>(p, taps, place);
  return false;
}

// Where the image's rows and columns are in memory, and which corners of a cell exist.
struct Corners {
  int32_t H, W;
  int64_t step[4];

  Corners(const SdcParams& p, const ImageView& image)
      : H(int32_t(p.H)), W(int32_t(p.W)),
        step{0, image.pixel_stride, p.W * image.pixel_stride, (p.W + 1) * image.pixel_stride} {}

  // All four of them.
  DANET_INLINE bool exist(int32_t y, int32_t x) const {
    return uint32_t(y) < uint32_t(H - 1) && uint32_t(x) < uint32_t(W - 1);
  }
  DANET_INLINE bool exists(int32_t y, int32_t x, int corner) const {
    return uint32_t(y + corner / 2) < uint32_t(H) && uint32_t(x + corner % 2) < uint32_t(W);
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

// out[0..C) of one group: the sum over its taps.
template <bool kInside, typename T, typename A>
DANET_INLINE void gather(
    const Taps<A>& taps, int64_t first, int64_t K, bool softmax, const Corners& corners, const T* image, T* out,
    int64_t C) {
  constexpr int L = kLanes<A>;
  const Vec<A> factor = broadcast<A>(softmax ? 1 / sum_of(taps.m + first, K) : A(1));
  for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    constexpr int kChains = V >= 4 ? 1 : 4 / V;  // an addition waits for the one before: keep four on their way
    Vec<A> total[kChains][V] = {};
    const T* const from[4] = {image + c, image + c + corners.step[1], image + c + corners.step[2],
                              image + c + corners.step[3]};
    for (int64_t j = first; j < first + K; ++j) {
      const int64_t cell = taps.cell[j];
      auto add = [&](int corner) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          total[corner % kChains][v] += taps.weight[corner][j] * load_channels(from[corner] + cell + v * L, count);
      };
      if (kInside || corners.exist(taps.y[j], taps.x[j])) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) add(corner);
      } else {
        for (int corner = 0; corner < 4; ++corner)
          if (corners.exists(taps.y[j], taps.x[j], corner)) add(corner);
        if (taps.weight[0][j] != taps.weight[0][j])  // NaN, wherever it lies
          for (int v = 0; v < V; ++v) total[0][v] += taps.weight[0][j];
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vec<A> result = total[0][v];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) result += total[chain][v];
      result *= factor;
      store_channels(out + c + v * L, result, count);
    }
  });
}

template <typename T>
void forward(
    const SdcParams& p, ImageView input, ImageView offset, ImageView mask, ImageView out, int64_t begin, int64_t end) {
  using A = Compute<T>;
  Taps<A> taps(p);
  const Corners corners(p, input);
  const int64_t C = p.C / p.G;
  const A start_y = A(sdc_start(p, 0)), start_x = A(sdc_start(p, 1));
  for (int64_t row = begin; row < end; ++row) {
    int64_t n = row / p.H_out, y = row % p.H_out;
    for (int64_t x = 0; x < p.W_out; ++x) {
      int64_t i = y * p.W_out + x;
      for (int64_t g = 0; g < p.G; g += taps.groups) {
        int64_t groups = g + taps.groups <= p.G ? taps.groups : p.G - g;
        bool inside = prepare<false>(
            p, taps,
            Place<A, T>{offset.pixel<T>(n, i) + 2 * g * p.K, mask.pixel<T>(n, i) + g * p.K,
                        start_y + A(y * p.stride[0]), start_x + A(x * p.stride[1]), groups * p.K,
                        uint32_t(input.pixel_stride), 0});
        const T* image = input.pixel<T>(n, 0) + g * C;
        T* result = out.pixel<T>(n, i) + g * C;
        for (int64_t h = 0; h < groups; ++h, image += C, result += C) {
          if (inside)
            gather<true>(taps, h * p.K, p.K, p.softmax, corners, image, result, C);
          else
            gather<false>(taps, h * p.K, p.K, p.softmax, corners, image, result, C);
        }
      }
    }
  }
}

template <typename T>
void reach(const SdcParams& p, ImageView offset, int64_t begin, int64_t end, int32_t (*result)[2]) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  Taps<A> taps(p);
  const A scale = A(p.offset_scale), H = A(p.H);
  for (int64_t row = begin; row < end; ++row) {
    int64_t n = row / p.H_out, y = row % p.H_out;
    const A start = A(sdc_start(p, 0)) + A(y * p.stride[0]);
    Vec<A> lowest = broadcast<A>(H), highest = broadcast<A>(-2);
    for (int64_t x = 0; x < p.W_out; ++x)
      for (int64_t g = 0; g < p.G; g += taps.groups) {
        int64_t J = (g + taps.groups <= p.G ? taps.groups : p.G - g) * p.K;
        Readable<T, 2 * L> offsets(offset.pixel<T>(n, y * p.W_out + x) + 2 * g * p.K, 2 * J);
        for_vectors<L>(J < L ? L : J, [&](int64_t j) {
          Vec<A> dy, dx;
          load_offsets<A>(offsets.values, j, dy, dx);
          Vec<A> place = (load(taps.tap_y + j) + start) + scale * dy;
          lowest = place < lowest ? place : lowest;
          highest = place > highest ? place : highest;
        });
      }
    A low = H, high = -2;
    for (int i = 0; i < L; ++i) {
      low = lowest[i] < low ? lowest[i] : low;
      high = highest[i] > high ? highest[i] : high;
    }
    low = low < 0 ? 0 : low;             // whole rows from here on: floor and one more row
    high = high > H - 1 ? H - 1 : high;
    result[row][0] = int32_t(low);
    result[row][1] = high < -1 ? -1 : int32_t(high + 1) < int32_t(H) ? int32_t(high + 1) : int32_t(H) - 1;
  }
}

// grad_input[corner of each tap] += weight * grad_output, for the corners in rows [first, last). A sum in memory waits
// for the one before it: the groups, which share no channel, take turns.
template <bool kInside, typename T, typename A>
DANET_INLINE void scatter(
    const Taps<A>& taps, int64_t groups, int64_t K, const Corners& corners, int32_t first, int32_t last,
    const T* grad_output, A* grad_image, int64_t C) {
  constexpr int L = kLanes<A>;
  for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    A* const to[4] = {grad_image + c, grad_image + c + corners.step[1], grad_image + c + corners.step[2],
                      grad_image + c + corners.step[3]};
    for (int64_t k = 0; k < K; ++k)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t j = g * K + k;
        Vec<A> grad[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_output + g * C + c + v * L, count);
        const int64_t cell = taps.grad_cell[j] + g * C;
        auto add = [&](int corner) __attribute__((always_inline)) {
          A* place = to[corner] + cell;
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            Vec<A> updated = load_channels(place + v * L, count) + taps.weight[corner][j] * grad[v];
            store_channels(place + v * L, updated, count);
          }
        };
        const int32_t y = taps.y[j];
        if (kInside || (corners.exist(y, taps.x[j]) && y >= first && y + 1 < last)) {
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner) add(corner);
        } else {
          for (int corner = 0; corner < 4; ++corner)
            if (y + corner / 2 >= first && y + corner / 2 < last && corners.exists(y, taps.x[j], corner)) add(corner);
        }
      }
  });
}

// taps.dot[j, corner] = sum_c grad_output * input at that corner, zero where there is no corner.
template <bool kInside, typename T, typename A>
DANET_INLINE void project(
    Taps<A>& taps, int64_t j0, int64_t K, const Corners& corners, const T* grad_output, const T* image,
    int64_t C) {
  constexpr int L = kLanes<A>;
  for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    Vec<A> grad[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_output + c + v * L, count);
    const T* const from[4] = {image + c, image + c + corners.step[1], image + c + corners.step[2],
                              image + c + corners.step[3]};
    for (int64_t j = j0; j < j0 + K; ++j) {
      const int64_t cell = taps.cell[j];
      Vec<A> product[4] = {};
      auto add = [&](int corner) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          product[corner] += grad[v] * load_channels(from[corner] + cell + v * L, count);
      };
      if (kInside || corners.exist(taps.y[j], taps.x[j])) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) add(corner);
      } else {
        for (int corner = 0; corner < 4; ++corner)
          if (corners.exists(taps.y[j], taps.x[j], corner)) add(corner);
      }
      Four<A> dot = sum_lanes<A>(product[0], product[1], product[2], product[3]);
      if (c > 0) dot += bits_as<Four<A>>(taps.dot + 4 * j);
      std::memcpy(taps.dot + 4 * j, &dot, sizeof dot);
    }
  });
}

// grad_offset and grad_mask of the prepared groups, from taps.dot.
template <typename T, typename A>
DANET_INLINE void finish(
    const SdcParams& p, Taps<A>& taps, int64_t groups, T* grad_offset, T* grad_mask) {
  constexpr int L = kLanes<A>;
  int64_t J = groups * p.K;
  const A scale = A(p.offset_scale);
  T short_offsets[2 * L], short_masks[L];
  T* offsets = J < L ? short_offsets : grad_offset;
  T* masks = J < L ? short_masks : grad_mask;
  auto vectors = [&](const auto& body) { for_vectors<L>(J < L ? L : J, body); };

  vectors([&](int64_t j) {
    const A* d = taps.dot + 4 * j;
    Vec<A> d0 = load(d), d1 = load(d + L), d2 = load(d + 2 * L), d3 = load(d + 3 * L);
    Vec<A> even_low = pick<EvenLanes>(d0, d1), even_high = pick<EvenLanes>(d2, d3);
    Vec<A> odd_low = pick<OddLanes>(d0, d1), odd_high = pick<OddLanes>(d2, d3);
    Vec<A> dot[4] = {
        pick<EvenLanes>(even_low, even_high), pick<EvenLanes>(odd_low, odd_high),
        pick<OddLanes>(even_low, even_high), pick<OddLanes>(odd_low, odd_high)};
    Vec<A> grad_m, grad_y, grad_x;
    bilinear_gradients(load(taps.cell_y + j), load(taps.cell_x + j), load(taps.m + j), dot, grad_m, grad_y, grad_x);
    store(taps.grad_m + j, grad_m);
    grad_y *= scale;
    grad_x *= scale;
    store(offsets + 2 * j, pick<InterleavedLow>(grad_y, grad_x));
    store(offsets + 2 * j + L, pick<InterleavedHigh>(grad_y, grad_x));
  });
  if (p.softmax) {
    for (int64_t g = 0; g < groups; ++g) {
      A mean = 0;
      for (int64_t j = g * p.K; j < (g + 1) * p.K; ++j) mean += taps.m[j] * taps.grad_m[j];
      for (int64_t j = g * p.K; j < (g + 1) * p.K; ++j) taps.grad_m[j] = taps.m[j] * (taps.grad_m[j] - mean);
    }
  }
  vectors([&](int64_t j) { store(masks + j, load(taps.grad_m + j)); });
  if (J < L) {
    for (int64_t j = 0; j < J; ++j) grad_mask[j] = masks[j];
    for (int64_t j = 0; j < 2 * J; ++j) grad_offset[j] = offsets[j];
  }
}

template <typename T>
void backward(
    const SdcParams& p, ImageView grad_output, ImageView input, ImageView offset, ImageView mask, ImageView grad_input,
    ImageView grad_offset, ImageView grad_mask, int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last,
    const int32_t (*reach)[2]) {
  using A = Compute<T>;
  Taps<A> taps(p);
  const Corners corners(p, input), grad_corners(p, grad_input);
  const int64_t C = p.C / p.G;
  const A start_y = A(sdc_start(p, 0)), start_x = A(sdc_start(p, 1));
  for (int64_t y = 0; y < p.H_out; ++y) {
    bool own = y >= begin && y < end, within = true, touched = true;
    if (reach != nullptr) {
      const int32_t* rows = reach[n * p.H_out + y];
      within = rows[0] >= first && rows[1] < last;
      touched = rows[0] < last && rows[1] >= first;
    }
    if (!own && !touched) continue;
    for (int64_t x = 0; x < p.W_out; ++x) {
      int64_t i = y * p.W_out + x;
      for (int64_t g = 0; g < p.G; g += taps.groups) {
        int64_t groups = g + taps.groups <= p.G ? taps.groups : p.G - g;
        bool inside = prepare<true>(
            p, taps,
            Place<A, T>{offset.pixel<T>(n, i) + 2 * g * p.K, mask.pixel<T>(n, i) + g * p.K,
                        start_y + A(y * p.stride[0]), start_x + A(x * p.stride[1]), groups * p.K,
                        uint32_t(input.pixel_stride), uint32_t(grad_input.pixel_stride)});
        const T* grad = grad_output.pixel<T>(n, i) + g * C;
        if (own) {
          const T* image = input.pixel<T>(n, 0) + g * C;
          for (int64_t h = 0; h < groups; ++h) {
            if (inside)
              project<true>(taps, h * p.K, p.K, corners, grad + h * C, image + h * C, C);
            else
              project<false>(taps, h * p.K, p.K, corners, grad + h * C, image + h * C, C);
          }
        }
        if (touched) {
          A* grad_image = grad_input.pixel<A>(n, 0) + g * C;
          if (inside && within)
            scatter<true>(taps, groups, p.K, grad_corners, 0, 0, grad, grad_image, C);
          else
            scatter<false>(
                taps, groups, p.K, grad_corners, int32_t(first), int32_t(last), grad, grad_image, C);
        }
        if (own)
          finish(
              p, taps, groups, grad_offset.pixel<T>(n, i) + 2 * g * p.K, grad_mask.pixel<T>(n, i) + g * p.K);
      }
    }
  }
}

template <typename T>
constexpr SdcKernels kKernels = {forward<T>, reach<T>, backward<T>};

}  // namespace

const SdcKernels& DANET_ISA::sdc_kernels(DType dtype) { return DANET_PICK_TYPE(kKernels, dtype); }

}  // namespace danet
