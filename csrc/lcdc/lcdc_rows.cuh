// LCDC through rows of channels in shared memory: any number of channels, taps and any strides. And the sum of what
// blocks leave for grad_weight.
#pragma once

#include "lcdc_device.cuh"

namespace danet {
namespace {

// Goes through numbers [rows][width] from `start` on in steps.
struct Walk {
  int row, column, width, rows_step, columns_step;

  GPU_DEVICE Walk(int start, int step, int numbers)
      : row(start / numbers), column(start % numbers), width(numbers), rows_step(step / numbers),
        columns_step(step % numbers) {}
  GPU_DEVICE void next() {
    row += rows_step, column += columns_step;
    if (column >= width) column -= width, ++row;
  }
};

// taps[j] * row[j] summed over j, or taps[k - 1 - j] * row[j].
template <bool kReversed, typename T>
GPU_DEVICE Compute<T> convolve_row(const T* taps, const Compute<T>* row, int k) {
  Compute<T> sum = 0;
#pragma unroll 4
  for (int j = 0; j < k; ++j) sum += gpu::to_compute(taps[kReversed ? k - 1 - j : j]) * row[j];
  return sum;
}

// A block's tile is up to `pixels` pixels, of one position if each has its own taps; a thread computes every 256th
// channel of it. Shared memory (for rows that do not fit it, `workspace`) holds for each pixel its row of input between
// k / 2 zeros and, backward, of d, then g * s, and the sums for grad_weight of k taps, a warp every eighth. Device
// memory is read and written once, as above, but 4 * k shared memory accesses a channel bind. Not yet measured on a
// GPU.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kThreads, 4) through_rows(
    LcdcParams p, int pixels, ImageView grad_output /* [N, P, C] */, ImageView input /* [N, P, C] */,
    const T* __restrict__ weight /* [1 or P, k] */, ImageView result /* out or grad_input, [N, P, C] */,
    Compute<T>* workspace /* [blocks, size] or null */, int64_t size,
    Compute<T>* __restrict__ partial /* [blocks, k] */, T* __restrict__ grad_weight /* [P, k] */) {
  using A = Compute<T>;
  GPU_DYNAMIC_SHARED(A, shared);
  const int C = int(p.C), k = int(p.k), reach = k / 2, width = C + 2 * reach;
  const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
  A* x = workspace ? workspace + blockIdx.x * size : shared;  // [pixels, width]
  A *d = x + pixels * width, *gated = d + pixels * width;     // the same
  A* sums = p.gate ? gated + pixels * width : gated;          // [k]
  const int64_t all = p.shared ? p.N * p.P : p.N, units = p.shared ? (all + pixels - 1) / pixels : p.P;

  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const T* taps = weight + (p.shared ? 0 : unit * k);
    int64_t first = p.shared ? unit * pixels : 0;  // pixel or, with taps of each position, image
    const int64_t end = p.shared && first + pixels < all ? first + pixels : all;
    for (; first < end; first += pixels) {
      const int count = int(end - first < pixels ? end - first : pixels);
      const auto pixel_of = [&](int row) {
        return p.shared ? gpu::locate(p.N, p.P, first + row) : gpu::Pixel{first + row, unit};
      };
      for (Walk at(thread, kThreads, width); at.row < count; at.next()) {
        const gpu::Pixel pixel = pixel_of(at.row);
        const int c = at.column - reach, own = at.row * width + at.column;
        const bool inside = c >= 0 && c < C;
        x[own] = inside ? gpu::to_compute(input.pixel<const T>(pixel.n, pixel.i)[c]) : A(0);
        if (kBackward) d[own] = inside ? gpu::to_compute(grad_output.pixel<const T>(pixel.n, pixel.i)[c]) : A(0);
      }
      __syncthreads();
      for (Walk at(thread, kThreads, C); at.row < count && (!kBackward || p.gate); at.next()) {
        const int row = at.row * width + at.column, own = row + reach;
        const A a = convolve_row<false>(taps, x + row, k), s = p.gate ? sigmoid<T>(a) : A(0);
        if (kBackward) {
          gated[own] = d[own] * s;
          d[own] = gated[own] * x[own] * (1 - s);
        } else {
          const gpu::Pixel pixel = pixel_of(at.row);
          result.pixel<T>(pixel.n, pixel.i)[at.column] = gpu::from_compute<T>(p.gate ? s * x[own] : a);
        }
      }
      __syncthreads();
      if constexpr (kBackward) {
        for (Walk at(thread, kThreads, C); at.row < count; at.next()) {
          const int row = at.row * width + at.column;
          const gpu::Pixel pixel = pixel_of(at.row);
          A grad = convolve_row<true>(taps, d + row, k);
          if (p.gate) grad += gated[row + reach];
          result.pixel<T>(pixel.n, pixel.i)[at.column] = gpu::from_compute<T>(grad);
        }
        const bool anew = p.shared ? unit == blockIdx.x : first == 0;
        for (int j = warp; j < k; j += kWarps) {
          A sum = 0;
          for (Walk at(lane, 32, C); at.row < count; at.next()) {
            const int row = at.row * width + at.column;
            sum += d[row + reach] * x[row + j];
          }
          sum = gpu::sum_lanes<32>(sum);
          if (lane == 0) sums[j] = anew ? sum : sums[j] + sum;
        }
        __syncthreads();
      }
    }
    if (kBackward && !p.shared && lane == 0)
      for (int j = warp; j < k; j += kWarps) grad_weight[unit * k + j] = gpu::from_compute<T>(sums[j]);
  }
  if (kBackward && p.shared && lane == 0)
    for (int j = warp; j < k; j += kWarps) partial[int64_t(blockIdx.x) * k + j] = sums[j];
}

// A block sums one tap's parts, always in the same order. A few hundred KB at most: the launch is what it costs.
template <typename T>
__global__ void __launch_bounds__(kThreads) sum_parts(
    const Compute<T>* __restrict__ partial /* [parts, k] */, int parts, T* __restrict__ grad_weight /* [k] */) {
  GPU_SHARED(warp_sums, double[kWarps]);
  double sum = 0;
  for (int part = int(threadIdx.x); part < parts; part += kThreads)
    sum += partial[int64_t(part) * gridDim.x + blockIdx.x];
  sum = gpu::sum_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += warp_sums[w];
  grad_weight[blockIdx.x] = gpu::from_compute<T>(Compute<T>(sum));
}

}  // namespace
}  // namespace danet
