// LCDC (lcdc.h) with rows of channels in shared memory: the general CUDA kernel, for any number of channels and taps
// and any strides. This file also has the kernel that sums the blocks' parts of grad_weight.
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

// Returns sum_j taps[kReversed ? k - 1 - j : j] * row[j].
template <bool kReversed, typename T>
GPU_DEVICE Compute<T> convolve_row(const T* taps, const Compute<T>* row, int k) {
  Compute<T> sum = 0;
#pragma unroll 4
  for (int j = 0; j < k; ++j) sum += gpu::to_compute(taps[kReversed ? k - 1 - j : j]) * row[j];
  return sum;
}

// Forward writes out. Backward (kBackward) writes grad_input and the block's part of grad_weight.
// A block computes tiles of up to `pixels` pixels. Without shared taps, all pixels of a tile have the same position. A
// thread computes every 256th channel of the tile. Shared memory (or `workspace`, if the rows do not fit) holds, for
// each pixel, its zero-padded row of the input. In backward it also holds the rows of d and, with gate, of g * s, and k
// sums for grad_weight, of which each warp computes every eighth.
// Roofline: device memory is read and written once. The 4 * k accesses to shared memory per channel are the bottleneck.
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
  // A work item is one tile or, without shared taps, one position of all images.
  const int64_t all = p.shared ? p.N * p.P : p.N, num_work_items = p.shared ? (all + pixels - 1) / pixels : p.P;

  for (int64_t work_index = blockIdx.x; work_index < num_work_items; work_index += gridDim.x) {
    const T* taps = weight + (p.shared ? 0 : work_index * k);
    int64_t first = p.shared ? work_index * pixels : 0;  // first pixel of the tile or, without shared taps, first image
    const int64_t end = p.shared && first + pixels < all ? first + pixels : all;
    for (; first < end; first += pixels) {
      const int count = int(end - first < pixels ? end - first : pixels);
      const auto pixel_of = [&](int row) {
        return p.shared ? gpu::split_pixel_index(p.N, p.P, first + row) : gpu::Pixel{first + row, work_index};
      };
      // Load the tile's padded rows of the input and the gradient
      for (RowIterator it(thread, kThreads, width); it.row < count; it.advance()) {
        const gpu::Pixel pixel = pixel_of(it.row);
        const int c = it.column - pad, element = it.row * width + it.column;
        const bool inside = c >= 0 && c < C;
        x[element] = inside ? gpu::to_compute(input.pixel<const T>(pixel.n, pixel.i)[c]) : A(0);
        if (kBackward) d[element] = inside ? gpu::to_compute(grad_output.pixel<const T>(pixel.n, pixel.i)[c]) : A(0);
      }
      __syncthreads();
      // Convolve; write the output, or with gate compute g * s and d
      for (RowIterator it(thread, kThreads, C); it.row < count && (!kBackward || p.gate); it.advance()) {
        const int row = it.row * width + it.column, element = row + pad;
        const A a = convolve_row</*kReversed=*/false>(taps, x + row, k), s = p.gate ? sigmoid<T>(a) : A(0);
        if (kBackward) {
          gated[element] = d[element] * s;
          d[element] = gated[element] * x[element] * (1 - s);
        } else {
          const gpu::Pixel pixel = pixel_of(it.row);
          result.pixel<T>(pixel.n, pixel.i)[it.column] = gpu::from_compute<T>(p.gate ? s * x[element] : a);
        }
      }
      __syncthreads();
      if constexpr (kBackward) {
        // Write grad_input
        for (RowIterator it(thread, kThreads, C); it.row < count; it.advance()) {
          const int row = it.row * width + it.column;
          const gpu::Pixel pixel = pixel_of(it.row);
          A grad = convolve_row</*kReversed=*/true>(taps, d + row, k);
          if (p.gate) grad += gated[row + pad];
          result.pixel<T>(pixel.n, pixel.i)[it.column] = gpu::from_compute<T>(grad);
        }
        // Add the tile to the sums for grad_weight: one warp per tap
        const bool is_first_tile = p.shared ? work_index == blockIdx.x : first == 0;
        for (int j = warp; j < k; j += kWarps) {
          A sum = 0;
          for (RowIterator it(lane, 32, C); it.row < count; it.advance()) {
            const int row = it.row * width + it.column;
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
      for (int j = warp; j < k; j += kWarps) grad_weight[work_index * k + j] = gpu::from_compute<T>(sums[j]);
  }
  if (kBackward && p.shared && lane == 0)
    for (int j = warp; j < k; j += kWarps) partial[int64_t(blockIdx.x) * k + j] = sums[j];
}

// A block sums the parts of one tap, always in the same order. It reads at most a few hundred KB, so that the latency
// of the launch dominates.
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
