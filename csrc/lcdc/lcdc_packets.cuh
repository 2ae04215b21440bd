// LCDC (lcdc.h) in registers: a warp holds whole pixels, as packets of 16 bytes. Shuffles exchange the halo of each
// packet, which is the k / 2 channels before and after it.
#pragma once

#include "lcdc_device.cuh"

namespace danet {
namespace {

// The packets of a pixel, and the pixels in 32 lanes; computed on the host, because divisions are slow in a kernel.
struct PacketCounts {
  gpu::Divisor packets_per_pixel;
  int32_t pixels_per_row;

  PacketCounts(int64_t C, int packet_size)
      : packets_per_pixel(C / packet_size), pixels_per_row(int32_t(32 / packets_per_pixel.divisor)) {}
};

// The layout of pixels in the packets of a warp, which are kRows rows of 32 lanes. If the packets of a pixel fit into
// one row, each row holds as many whole pixels as fit (some lanes may be idle). Otherwise (kJoined) all rows together
// hold one pixel.
template <typename T, int kRows, bool kJoined>
struct PacketLayout {
  static constexpr int kPixels = kJoined ? 1 : kRows;  // pixels per thread
  int packets_per_pixel, pixels_per_row;
  int pixel_in_row, packet;  // this lane's pixel, and its packet of that pixel

  GPU_DEVICE explicit PacketLayout(const PacketCounts& counts)
      : packets_per_pixel(int(counts.packets_per_pixel.divisor)) {
    const int lane = int(threadIdx.x) % 32;
    pixels_per_row = kJoined ? 1 : counts.pixels_per_row;
    pixel_in_row = kJoined ? 0 : counts.packets_per_pixel.divide(lane);
    packet = lane - pixel_in_row * packets_per_pixel;
  }
  GPU_DEVICE int pixels_per_warp() const { return kPixels * pixels_per_row; }
  GPU_DEVICE int pixel_of(int row) const { return kJoined ? 0 : row * pixels_per_row + pixel_in_row; }
  GPU_DEVICE int packet_of(int row) const { return kJoined ? row * 32 + packet : packet; }
  GPU_DEVICE int channel_of(int row) const { return packet_of(row) * gpu::Packet<T>::kSize; }
  GPU_DEVICE bool is_valid(int row) const {
    return pixel_in_row < pixels_per_row && packet_of(row) < packets_per_pixel;
  }
  GPU_DEVICE bool is_first() const { return packet == 0; }
  GPU_DEVICE bool is_last() const { return packet == (kJoined ? 31 : packets_per_pixel - 1); }
};

// Loads the packet at `from` (zeros if !valid) to window[kHalo...].
template <int kHalo, typename T, int kWidth>
GPU_DEVICE void load_packet(float (&window)[kWidth], const T* from, bool valid) {
  constexpr int kSize = gpu::Packet<T>::kSize;
  const auto packet = gpu::to_compute(gpu::load<kSize>(from, valid));
#pragma unroll
  for (int v = 0; v < kSize; ++v) window[kHalo + v] = packet.values[v];
}

// Fills the kHalo values before and after each packet from the neighbouring lanes (kJoined: also from the neighbouring
// rows), with zeros outside the pixel. All lanes of the warp must call it.
template <int kHalo, bool kJoined, int kRows, int kWidth>
GPU_DEVICE void exchange_halo(float (&windows)[kRows][kWidth], bool is_first, bool is_last) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int q = 0; q < kHalo; ++q) {
    float row_before = 0, row_after = 0;  // for the end lanes: values of the neighbouring row, or zeros
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float before = __shfl_sync(~0u, windows[r][kWidth - 2 * kHalo + q], (lane + 31) % 32);
      windows[r][q] = is_first ? row_before : before;
      if (kJoined) row_before = before;
    }
#pragma unroll
    for (int r = kRows - 1; r >= 0; --r) {
      const float after = __shfl_sync(~0u, windows[r][kHalo + q], (lane + 1) % 32);
      windows[r][kWidth - kHalo + q] = is_last ? row_after : after;
      if (kJoined) row_after = after;
    }
  }
}

// Returns sum_j taps[kReversed ? kTaps - 1 - j : j] * window[j].
template <bool kReversed, int kTaps>
GPU_DEVICE float convolve_window(const float (&taps)[kTaps], const float* window) {
  float sum = taps[kReversed ? kTaps - 1 : 0] * window[0];
#pragma unroll
  for (int j = 1; j < kTaps; ++j) sum += taps[kReversed ? kTaps - 1 - j : j] * window[j];
  return sum;
}

template <typename T, int kTaps>
GPU_DEVICE void load_taps(float (&taps)[kTaps], const T* weight) {
#pragma unroll
  for (int j = 0; j < kTaps; ++j) taps[j] = gpu::to_compute(weight[j]);
}

// Computes the warp's pixels from `start` on. Forward writes out. Backward (kBackward) writes grad_input, and adds to
// `sums`, the thread's part of grad_weight. Without shared taps, backward computes the positions of the one image
// `image`.
template <bool kBackward, typename T, int kTaps, int kRows, bool kJoined>
GPU_DEVICE void lcdc_warp_step(
    const LcdcParams& p, const PacketLayout<T, kRows, kJoined>& layout, bool shared, int64_t start, int64_t image,
    const ImageView& grad_output, const ImageView& input, const T* __restrict__ weight, const ImageView& result,
    float (&sums)[PacketLayout<T, kRows, kJoined>::kPixels][kTaps]) {
  constexpr int kSize = gpu::Packet<T>::kSize, kHalo = kTaps / 2, kPixels = PacketLayout<T, kRows, kJoined>::kPixels;
  const bool one_image = kBackward && !shared;
  float x[kRows][kSize + 2 * kHalo], d[kRows][kSize + 2 * kHalo], gated[kRows][kSize];
  float taps[kPixels][kTaps] = {};
  T* to[kRows];  // null where this lane has no packet
  // Load the packets and their taps
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    int64_t index = start + layout.pixel_of(r);
    const bool valid = layout.is_valid(r) && index < (one_image ? p.P : p.N * p.P);
    if (!valid) index = 0;
    const gpu::Pixel pixel = one_image ? gpu::Pixel{image, index} : gpu::split_pixel_index(p.N, p.P, index);
    const int channel = layout.channel_of(r);
    load_packet<kHalo>(x[r], input.pixel<const T>(pixel.n, pixel.i) + channel, valid);
    if constexpr (kBackward) load_packet<kHalo>(d[r], grad_output.pixel<const T>(pixel.n, pixel.i) + channel, valid);
    to[r] = valid ? result.pixel<T>(pixel.n, pixel.i) + channel : nullptr;
    if (r < kPixels) load_taps(taps[r % kPixels], weight + (shared ? 0 : pixel.i * kTaps));
  }
  // Convolve and apply the gate; in backward compute g * s and d
  exchange_halo<kHalo, kJoined>(x, layout.is_first(), layout.is_last());
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const int c = kHalo + v;
      const float a = kBackward && !p.gate ? 0 : convolve_window</*kReversed=*/false>(taps[r % kPixels], x[r] + v);
      if constexpr (!kBackward) {
        gated[r][v] = p.gate ? sigmoid<T>(a) * x[r][c] : a;  // out
      } else if (p.gate) {
        const float s = sigmoid<T>(a);
        gated[r][v] = d[r][c] * s;
        d[r][c] = to[r] ? gated[r][v] * x[r][c] * (1 - s) : 0;  // 0 even if a tap is NaN or infinite
      } else {
        gated[r][v] = 0;
      }
    }
  // Backward: convolve d, and accumulate grad_weight. Then write back
  if constexpr (kBackward) exchange_halo<kHalo, kJoined>(d, layout.is_first(), layout.is_last());
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (!to[r]) continue;
    gpu::Packet<T> packet;
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      if constexpr (kBackward) {
        gated[r][v] += convolve_window</*kReversed=*/true>(taps[r % kPixels], d[r] + v);
#pragma unroll
        for (int j = 0; j < kTaps; ++j) sums[r % kPixels][j] += d[r][kHalo + v] * x[r][v + j];
      }
      packet.values[v] = gpu::from_compute<T>(gated[r][v]);
    }
    *reinterpret_cast<gpu::Packet<T>*>(to[r]) = packet;
  }
}

// Forward. A thread computes kRows packets of out. Every input is read once and every output is written once, with
// coalesced accesses. There is no shared memory and no barrier.
// With s = element size, the kernel moves 2 * s bytes per element, and computes 2 * k + 10 flops and two special
// functions. Device memory is the bottleneck: docs/performance_model.md. Not yet measured on a GPU.
template <typename T, int kTaps, int kRows, bool kJoined>
__global__ void __launch_bounds__(kThreads) lcdc_forward_packets(
    LcdcParams p, PacketCounts counts, ImageView input /* [N, P, C] */,
    const T* __restrict__ weight /* [1 or P, kTaps] */, ImageView out /* [N, P, C] */) {
  const PacketLayout<T, kRows, kJoined> layout(counts);
  const int64_t start = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * layout.pixels_per_warp();
  float unused_sums[PacketLayout<T, kRows, kJoined>::kPixels][kTaps] = {};
  lcdc_warp_step</*kBackward=*/false>(p, layout, p.shared, start, 0, input, input, weight, out, unused_sums);
}

// The minimum number of blocks of lcdc_backward_packets per multiprocessor: the largest value that compiles without
// register spills.
template <typename T, int kTaps, int kRows>
constexpr int kBackwardBlocks = kRows > 1   ? 1
                                : kTaps > 3 ? 3
                                            : 4;

// Backward with shared taps, in the layout of lcdc_forward_packets. The blocks loop over the pixels. Each block sums
// its part of grad_weight in a fixed order, and writes it to `partial`. Shared memory holds the warps' sums.
// The kernel moves 3 * s bytes per element, and computes 6 * k + 20 flops. Device memory is the bottleneck:
// docs/performance_model.md. Not yet measured on a GPU.
template <typename T, int kTaps, int kRows, bool kJoined>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T, kTaps, kRows>) lcdc_backward_packets(
    LcdcParams p, PacketCounts counts, ImageView grad_output /* [N, P, C] */, ImageView input /* [N, P, C] */,
    const T* __restrict__ weight /* [kTaps] */, ImageView grad_input /* [N, P, C] */,
    float* __restrict__ partial /* [blocks, kTaps] */) {
  using Layout = PacketLayout<T, kRows, kJoined>;
  GPU_SHARED(warp_sums, float[kWarps][kTaps]);
  const Layout layout(counts);
  const int warp = int(threadIdx.x) / 32, pixels = layout.pixels_per_warp();
  const int64_t step = int64_t(gridDim.x) * kWarps * pixels;
  float sums[Layout::kPixels][kTaps] = {};
  // Loop over the pixels
  for (int64_t start = (int64_t(blockIdx.x) * kWarps + warp) * pixels; start < p.N * p.P; start += step)
    lcdc_warp_step</*kBackward=*/true>(
        p, layout, /*shared=*/true, start, 0, grad_output, input, weight, grad_input, sums);
  // Sum over the thread's pixels, then the lanes of the warp, then the warps
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < Layout::kPixels; ++r) sum += sums[r][j];
    sum = gpu::sum_lanes<32>(sum);
    if (threadIdx.x % 32 == 0) warp_sums[warp][j] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kTaps) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += warp_sums[w][threadIdx.x];
  partial[int64_t(blockIdx.x) * kTaps + threadIdx.x] = sum;
}

// Backward without shared taps. `slices` warps (a power of two) compute the same positions, each for a different part
// of the N images; their sums are added in a fixed order. A block has kWarps / slices sets of positions. The bottleneck
// is the same; weight and grad_weight add at most k / N of the traffic of the images.
template <typename T, int kTaps, int kRows, bool kJoined>
__global__ void __launch_bounds__(kThreads, kRows > 1 ? 1 : 3) lcdc_backward_positions(
    LcdcParams p, PacketCounts counts, int slices, ImageView grad_output /* [N, P, C] */,
    ImageView input /* [N, P, C] */, const T* __restrict__ weight /* [P, kTaps] */,
    ImageView grad_input /* [N, P, C] */, T* __restrict__ grad_weight /* [P, kTaps] */) {
  using Layout = PacketLayout<T, kRows, kJoined>;
  GPU_SHARED(warp_sums, float[kWarps][kJoined ? 1 : kRows * 32][kTaps]);
  const Layout layout(counts);
  const int warp = int(threadIdx.x) / 32, position_sets = kWarps / slices, pixels = layout.pixels_per_warp();
  const int64_t start = int64_t(blockIdx.x) * position_sets * pixels;
  float sums[Layout::kPixels][kTaps] = {};
  // Loop over this warp's images
  for (int64_t image = warp % slices; image < p.N; image += slices)
    lcdc_warp_step</*kBackward=*/true>(
        p, layout, /*shared=*/false, start + warp / slices * pixels, image, grad_output, input, weight, grad_input,
        sums);
  // Sum over the lanes of each pixel
#pragma unroll
  for (int r = 0; r < Layout::kPixels; ++r)
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      float sum = sums[r][j];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {  // a pixel may have any number of lanes
        const float other = __shfl_down_sync(~0u, sum, step);
        if (kJoined || layout.packet + step < layout.packets_per_pixel) sum += other;
      }
      if (layout.is_first() && layout.is_valid(r)) warp_sums[warp][layout.pixel_of(r)][j] = sum;
    }
  __syncthreads();
  // Sum over the slices, and write grad_weight
  for (int i = int(threadIdx.x); i < position_sets * pixels * kTaps; i += kThreads) {
    const int j = i % kTaps, position = i / kTaps, set = position / pixels;
    float sum = 0;
    for (int slice = 0; slice < slices; ++slice) sum += warp_sums[set * slices + slice][position - set * pixels][j];
    if (start + position < p.P) grad_weight[(start + position) * kTaps + j] = gpu::from_compute<T>(sum);
  }
}

}  // namespace
}  // namespace danet
