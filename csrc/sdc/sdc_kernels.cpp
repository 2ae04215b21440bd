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
    const T* image = input.pixel<T>(n, 0);
    T* out_row = out.pixel<T>(n, row % p.H_out * p.W_out);
    for_row<T>(
        p, taps, offset, mask, input.pixel_stride, 0, n, row % p.H_out,
        [&](int64_t x, int64_t g, const Place<Compute<T>, T>& place) __attribute__((always_inline)) {
          sum_taps(p, taps, place, corners, image + g * C, out_row + x * out.pixel_stride + g * C, C);
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
        Readable<T, 2 * L> offsets(offset.pixel<T>(n, y * p.W_out + x) + g * p.offset_group, 2 * J);
        for_vectors<L>(J < L ? L : J, [&](int64_t j) {
          Vec<A> dy, dx;
          load_offsets<A>(p, offsets.values, j, dy, dx);
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
    low = low < 0 ? 0 : low;  // whole rows from here on: floor and one more row
    high = high > H - 1 ? H - 1 : high;
    result[row][0] = int32_t(low);
    result[row][1] = high < -1 ? -1 : int32_t(high + 1) < int32_t(H) ? int32_t(high + 1) : int32_t(H) - 1;
  }
}

// grad_input[corner of each tap] += weight * grad_output, for cells inside. A sum in memory waits for the one before it:
// the groups, which share no channel, take turns. Unless kAll, taps with both rows outside of the corners' are left out.
template <bool kAll, typename T, typename A>
DANET_INLINE void scatter(
    const Taps<A>& taps, int64_t groups, int64_t K, const Corners& corners, const T* grad_output, A* grad_image,
    int64_t C) {
  constexpr int L = kLanes<A>;
  for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    const Bases<A> to(grad_image + c, corners);
    for (int64_t k = 0; k < K; ++k)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t j = g * K + k, cell = taps.grad_cell[j];
        if (!kAll && (taps.y[j] < corners.first - 1 || taps.y[j] >= corners.last)) continue;
        Vec<A> grad[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_output + g * C + c + v * L, count);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          // All of them are read before the first is written: rows are often a multiple of 4096 bytes apart, and what
          // is read would wait for what was just written at the same place of another page.
          Vec<A> updated[4];
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner)
            updated[corner] = multiply_add<A>(
                broadcast(taps.weight[corner][j]), grad[v], load_channels(to.corner[corner] + cell + v * L, count));
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner)
            store_channels(to.corner[corner] + cell + v * L, updated[corner], count);
        }
      }
  });
}

// The same with every corner looked at: right wherever the cells lie and whatever is to be added.
template <typename T, typename A>
__attribute__((noinline)) void scatter_exactly(
    const Taps<A>& taps, int64_t groups, int64_t K, const Corners& corners, const T* grad_output, A* grad_image,
    int64_t C) {
  for (int64_t k = 0; k < K; ++k)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t j = g * K + k;
      corners.visit(taps.y[j], taps.x[j], [&](int corner, int64_t element) {
        A* place = grad_image + element + g * C;
        for_vectors_of<A>(C, [&](int64_t c, int count) {
          const Vec<A> grad = load_channels(grad_output + g * C + c, count);
          const Vec<A> weight = broadcast(taps.weight[corner][j]);
          store_channels(place + c, multiply_add<A>(weight, grad, load_channels(place + c, count)), count);
        });
      });
    }
}

// The taps whose four dot products fill a vector.
template <typename A>
constexpr int kTogether = kLanes<A> >= 4 ? kLanes<A> / 4 : 1;

// dot[corner] = sum_c grad_output * input at the corners of cells inside, to taps.dot: for every kTogether taps those of
// corner 0, then those of corner 1, ...
template <typename T, typename A>
DANET_INLINE void project(
    Taps<A>& taps, int64_t J, const Corners& corners, const T* grad_output, const T* image, int64_t C) {
  constexpr int L = kLanes<A>, B = kTogether<A>;
  for_channels<A>(C, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    const Bases<const T> from(image + c, corners);
    for (int64_t first = 0; first < J; first += B) {
      Vec<A> product[B][4];
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const int64_t j = first + b < J ? first + b : J - 1, cell = taps.cell[j];
        const T* grad_at = grad_output + taps.channel[j] + c;
        Vec<A> grad[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) grad[v] = load_channels(grad_at + v * L, count);
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          const T* p = from.corner[corner] + cell;
          if (V > 1) p = opaque_pointer(p);
          product[b][corner] = grad[0] * load_channels(p, count);
#pragma GCC unroll 4
          for (int v = 1; v < V; ++v) product[b][corner] += grad[v] * load_channels(p + v * L, count);
        }
      }
      const auto dot = sum_lanes<A>(product);
      A* to = taps.dot + 4 * first;
      const auto sum = c > 0 ? dot + bits_as<decltype(dot + dot)>(to) : dot;
      std::memcpy(to, &sum, sizeof sum);
    }
  });
}

// grad_offset and grad_mask of the prepared groups, from taps.dot. inside: their cells were not moved.
template <typename T, typename A>
DANET_INLINE void finish(const SdcParams& p, Taps<A>& taps, int64_t J, bool inside, T* grad_offset, T* grad_mask) {
  constexpr int L = kLanes<A>;
  const A scale = A(p.offset_scale);
  for (int64_t j = 0; j < J; j += L) {
    const A* d = taps.dot + 4 * j;
    Vec<A> dot[4];
    transpose_quarters(load(d), load(d + L), load(d + 2 * L), load(d + 3 * L), dot);
    if (!inside) {
      const Outside<A> rows(bits_as<IntVec<A>>(taps.y + j), 0, int32_t(p.H));
      const Outside<A> columns(bits_as<IntVec<A>>(taps.x + j), 0, int32_t(p.W));
      columns.unfold(dot[0], dot[1]);
      columns.unfold(dot[2], dot[3]);
      rows.unfold(dot[0], dot[2]);
      rows.unfold(dot[1], dot[3]);
      for (Vec<A>& each : dot) each = (rows.near & columns.near) ? each : Vec<A>{};
    }
    Vec<A> grad_m, grad_y, grad_x;
    bilinear_gradients(load(taps.cell_y + j), load(taps.cell_x + j), load(taps.m + j), dot, grad_m, grad_y, grad_x);
    store(taps.grad_m + j, grad_m);
    grad_y *= scale;
    grad_x *= scale;
    const Vec<A> one = p.x_first ? grad_x : grad_y, two = p.x_first ? grad_y : grad_x;
    store_up_to(grad_offset + 2 * j, pick<InterleavedLow>(one, two), 2 * (J - j));
    store_up_to(grad_offset + 2 * j + L, pick<InterleavedHigh>(one, two), 2 * (J - j) - L);
  }
  if (p.softmax)
    spread_over_groups(taps, J, p.K, [&](int64_t first) {
      A mean = 0;
      for (int64_t j = first; j < first + p.K; ++j) mean += taps.m[j] * taps.grad_m[j];
      return mean;
    });
  for (int64_t j = 0; j < J; j += L) {
    Vec<A> grad = load(taps.grad_m + j);
    if (p.softmax) grad = load(taps.m + j) * (grad - load(taps.of_group + j));
    store_up_to(grad_mask + j, grad, J - j);
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
    for_row<T>(
        p, taps, offset, mask, input.pixel_stride, grad_input.pixel_stride, n, y,
        [&](int64_t x, int64_t g, const Place<A, T>& place) {
          const int64_t i = y * p.W_out + x;
          const int64_t groups = place.J / p.K;
          const bool inside = prepare<true>(p, taps, place);
          const T* grad = grad_output.pixel<T>(n, i) + g * C;
          if (own) {
            if (!inside) fold<false>(p, taps, place.J, 0, p.H, place.stride, taps.cell);
            project(taps, place.J, corners, grad, input.pixel<T>(n, 0) + g * C, C);
            finish(
                p, taps, place.J, inside, grad_offset.pixel<T>(n, i) + g * p.offset_group,
                grad_mask.pixel<T>(n, i) + g * p.mask_group);
          }
          if (touched) {
            A* grad_image = grad_input.pixel<A>(n, 0) + g * C;
            if (inside && within) return scatter<true>(taps, groups, p.K, grad_corners, grad, grad_image, C);
            // What is not finite, times the weight zero, is not zero; and corners in one place cannot be read together.
            if (!grad_corners.apart() || !all_finite(grad, groups * C) || !all_finite(taps.m, place.J))
              return scatter_exactly(taps, groups, p.K, grad_corners, grad, grad_image, C);
            fold<true>(p, taps, place.J, first, last, place.grad_stride, taps.grad_cell);
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
