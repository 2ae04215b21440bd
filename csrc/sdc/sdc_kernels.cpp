// The CPU kernels of SDC. Once a pixel's taps are prepared (sdc_taps.h), whole vectors of channels are gathered, a group
// at a time, from the four corners of each tap. Backward projects grad_output on the same corners, for the gradients of
// offset and mask, and scatters it to them, for that of input.
#include "sdc_gather.h"

namespace danet {
namespace {

template <typename T>
void forward(
    const SdcParams& p, ImageView input, ImageView offset, ImageView mask, ImageView out, int64_t begin, int64_t end) {
  Taps<Compute<T>> taps(p);
  const Corners corners(p, input, 0, p.H);
  const int64_t C = p.C / p.G;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.H_out;
    for_row<false, T>(
        p, taps, offset, mask, input.pixel_stride, 0, n, row % p.H_out,
        [&](int64_t i, int64_t g, int64_t groups, bool inside) {
          const T* image = input.pixel<T>(n, 0) + g * C;
          T* result = out.pixel<T>(n, i) + g * C;
          if (inside)
            gather<true>(taps, groups, p.K, p.softmax, corners, image, result, C);
          else
            gather<false>(taps, groups, p.K, p.softmax, corners, image, result, C);
        });
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

// grad_input[corner of each tap] += weight * grad_output. A sum in memory waits for the one before it: the groups,
// which share no channel, take turns.
template <bool kInside, typename T, typename A>
DANET_INLINE void scatter(
    const Taps<A>& taps, int64_t groups, int64_t K, const Corners& corners, const T* grad_output, A* grad_image,
    int64_t C) {
  constexpr int L = kLanes<A>;
  for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    const Bases<A> to(grad_image + c, corners);
    for (int64_t k = 0; k < K; ++k)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t j = g * K + k;
        Vec<A> grad[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_output + g * C + c + v * L, count);
        const int64_t cell = taps.grad_cell[j] + g * C;
        corners.template visit<kInside>(taps.y[j], taps.x[j], [&](int corner) __attribute__((always_inline)) {
          A* place = to.corner[corner] + cell;
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            Vec<A> updated = load_channels(place + v * L, count) + taps.weight[corner][j] * grad[v];
            store_channels(place + v * L, updated, count);
          }
        });
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
    const Bases<const T> from(image + c, corners);
    for (int64_t j = j0; j < j0 + K; ++j) {
      const int64_t cell = taps.cell[j];
      Vec<A> product[4] = {};
      corners.template visit<kInside>(taps.y[j], taps.x[j], [&](int corner) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          product[corner] += grad[v] * load_channels(from.corner[corner] + cell + v * L, count);
      });
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
  const Corners corners(p, input, 0, p.H), grad_corners(p, grad_input, first, last);
  const int64_t C = p.C / p.G;
  for (int64_t y = 0; y < p.H_out; ++y) {
    bool own = y >= begin && y < end, within = true, touched = true;
    if (reach != nullptr) {
      const int32_t* rows = reach[n * p.H_out + y];
      within = rows[0] >= first && rows[1] < last;
      touched = rows[0] < last && rows[1] >= first;
    }
    if (!own && !touched) continue;
    for_row<true, T>(
        p, taps, offset, mask, input.pixel_stride, grad_input.pixel_stride, n, y,
        [&](int64_t i, int64_t g, int64_t groups, bool inside) {
          const T* grad = grad_output.pixel<T>(n, i) + g * C;
          if (own) {
            const T* image = input.pixel<T>(n, 0) + g * C;
            for (int64_t h = 0; h < groups; ++h) {
              if (inside)
                project<true>(taps, h * p.K, p.K, corners, grad + h * C, image + h * C, C);
              else
                project<false>(taps, h * p.K, p.K, corners, grad + h * C, image + h * C, C);
            }
            finish(p, taps, groups, grad_offset.pixel<T>(n, i) + 2 * g * p.K, grad_mask.pixel<T>(n, i) + g * p.K);
          }
          if (touched) {
            A* grad_image = grad_input.pixel<A>(n, 0) + g * C;
            if (inside && within)
              scatter<true>(taps, groups, p.K, grad_corners, grad, grad_image, C);
            else
              scatter<false>(taps, groups, p.K, grad_corners, grad, grad_image, C);
          }
        });
  }
}

template <typename T>
constexpr SdcKernels kKernels = {forward<T>, reach<T>, backward<T>};

}  // namespace

const SdcKernels& DANET_ISA::sdc_kernels(DType dtype) { return DANET_PICK_TYPE(kKernels, dtype); }

}  // namespace danet
