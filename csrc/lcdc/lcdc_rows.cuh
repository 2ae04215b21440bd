// LCDC with rows of channels in shared memory: the general CUDA kernel, for any number of channels and taps and any
// strides. Also the kernel that sums the blocks' parts of grad_weight.
#pragma once

#include "lcdc_device.cuh"

namespace danet {
namespace {

// Iterates over the elements of an array [rows][width], from flat index `start` on, every `step`-th, without a
// division per step.
struct RowIterator {
  int row, column, width, rows_step, columns_step;

  GPU_DEVICE RowIterator(int start, int step, int row_width)
      : row(start / row_width), column(start % row_width), width(row_width), rows_step(step / row_width),
        columns_step(step % row_width) {}
  GPU_DEVICE void advance() {
    row += rows_step, column += columns_step;
    if (column >= width) column -= width, ++row;
  }
};

// sum_j taps[kReversed ? k - 1 - j : j] * row[j].
template <bool kReversed, typename T>
GPU_DEVICE Compute<T> convolve_row(const T* taps, const Compute<T>* row, int k) {
  Compute<T> sum = 0;
#pragma unroll 4
  for (int j = 0; j < k; ++j) sum += gpu::to_compute(taps[kReversed ? k - 1 - j : j]) * row[j];
  return sum;
}

// Forward, or (kBackward) grad_input and the block's part of grad_weight.
// A block computes tiles of up to `pixels` pixels; without shared taps, all pixels of a tile have the same position. A
// thread computes every 256th channel of the tile. Shared memory (or `workspace`, if the rows do not fit) holds, for
// each pixel, its zero-padded row of input and, in backward, of d and of g * s; then k sums for grad_weight, of which
// each warp computes every eighth.
// Roofline: device memory is read and written once, but 4 * k shared memory accesses per channel are the bottleneck.
// Not yet measured on a GPU.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kThreads, 4) lcdc_shared_rows(
    LcdcParams p, int pixels, ImageView grad_output /* [N, P, C] */, ImageView input /* [N, P, C] */,
    const T* __restrict__ weight /* [1 or P, k] */, ImageView result /* out or grad_input, [N, P, C] */,
    Compute<T>* workspace /* [blocks, size] or null */, int64_t size,
    Compute<T>* __restrict__ partial /* [blocks, k] */, T* __restrict__ grad_weight /* [P, k] */) {
  using A = Compute<T>;
  GPU_DYNAMIC_SHARED(A, shared);
  const int C = int(p.C), k = int(p.k), pad = k / 2, width = C + 2 * pad;
  const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
  A* x = workspace ? workspace + blockIdx.x * size : shared;  // [pixels, width]
  A *d = x + pixels * width, *gated = d + pixels * width;     // [pixels, width] each
  A* sums = p.gate ? gated + pixels * width : gated;          // [k]
  const int64_t all = p.shared ? p.N * p.P : p.N, units = p.shared ? (all + pixels - 1) / pixels : p.P;

  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const T* taps = weight + (p.shared ? 0 : unit * k);
    int64_t first = p.shared ? unit * pixels : 0;  // first pixel of the tile or, without shared taps, first image
    const int64_t end = p.shared && first + pixels < all ? first + pixels : all;
    for (; first < end; first += pixels) {
      const int count = int(end - first < pixels ? end - first : pixels);
      const auto pixel_of = [&](int row) {
        return p.shared ? gpu::split_pixel_index(p.N, p.P, first + row) : gpu::Pixel{first + row, unit};
      };
      // Load the tile's padded rows of the input and the gradient
      for (RowIterator at(thread, kThreads, width); at.row < count; at.advance()) {
        const gpu::Pixel pixel = pixel_of(at.row);
        const int c = at.column - pad, element = at.row * width + at.column;
        const bool inside = c >= 0 && c < C;
        x[element] = inside ? gpu::to_compute(input.pixel<const T>(pixel.n, pixel.i)[c]) : A(0);
        if (kBackward) d[element] = inside ? gpu::to_compute(grad_output.pixel<const T>(pixel.n, pixel.i)[c]) : A(0);
      }
      __syncthreads();
      // Convolve; write the output, or with gate compute g * s and d
      for (RowIterator at(thread, kThreads, C); at.row < count && (!kBackward || p.gate); at.advance()) {
        const int row = at.row * width + at.column, element = row + pad;
        const A a = convolve_row<false>(taps, x + row, k), s = p.gate ? sigmoid<T>(a) : A(0);
        if (kBackward) {
          gated[element] = d[element] * s;
          d[element] = gated[element] * x[element] * (1 - s);
        } else {
          const gpu::Pixel pixel = pixel_of(at.row);
          result.pixel<T>(pixel.n, pixel.i)[at.column] = gpu::from_compute<T>(p.gate ? s * x[element] : a);
        }
      }
      __syncthreads();
      if constexpr (kBackward) {
        // Write grad_input
        for (RowIterator at(thread, kThreads, C); at.row < count; at.advance()) {
          const int row = at.row * width + at.column;
          const gpu::Pixel pixel = pixel_of(at.row);
          A grad = convolve_row<true>(taps, d + row, k);
          if (p.gate) grad += gated[row + pad];
          result.pixel<T>(pixel.n, pixel.i)[at.column] = gpu::from_compute<T>(grad);
        }
        // Add the tile to the sums for grad_weight: one warp per tap
        const bool is_first_tile = p.shared ? unit == blockIdx.x : first == 0;
        for (int j = warp; j < k; j += kWarps) {
          A sum = 0;
          for (RowIterator at(lane, 32, C); at.row < count; at.advance()) {
            const int row = at.row * width + at.column;
            sum += d[row + pad] * x[row + j];
          }
          sum = gpu::sum_lanes<32>(sum);
          if (lane == 0) sums[j] = is_first_tile ? sum : sums[j] + sum;
        }
        __syncthreads();
      }
    }
    // Write grad_weight of the position, or at the end the block's part
    if (kBackward && !p.shared && lane == 0)
      for (int j = warp; j < k; j += kWarps) grad_weight[unit * k + j] = gpu::from_compute<T>(sums[j]);
  }
  if (kBackward && p.shared && lane == 0)
    for (int j = warp; j < k; j += kWarps) partial[int64_t(blockIdx.x) * k + j] = sums[j];
}

// A block sums the parts of one tap, always in the same order. It reads a few hundred KB at most, so that the launch
// latency dominates.
template <typename T>
__global__ void __launch_bounds__(kThreads) lcdc_sum_parts(
    const Compute<T>* __restrict__ partial /* [parts, k] */, int parts, T* __restrict__ grad_weight /* [k] */) {
  GPU_SHARED(warp_sums, double[kWarps]);
  // Sum every 256th part per thread, then the lanes of a warp, then the warps
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
