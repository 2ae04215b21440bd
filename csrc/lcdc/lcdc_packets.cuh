// LCDC in registers: a warp keeps whole pixels in packets of 16 bytes, and shuffles pass the channels beyond a packet's
// ends.
#pragma once

#include "lcdc_device.cuh"

namespace danet {
namespace {

// A thread's place among its warp's packets, kRows of 32. Where a pixel's packets fit one row, each row holds whole
// pixels (and some lanes may be idle); else (kJoined) all rows together hold one pixel.
template <typename T, int kRows, bool kJoined>
struct Place {
  static constexpr int kPixels = kJoined ? 1 : kRows;  // of a thread
  int packets, row_pixels, pixel, packet;  // of a pixel; pixels of a row; which of them, which of its packets

  GPU_DEVICE explicit Place(int64_t C) : packets(int(C) / gpu::Packet<T>::kSize) {
    const int lane = int(threadIdx.x) % 32;
    row_pixels = kJoined ? 1 : 32 / packets;
    pixel = kJoined ? 0 : lane / packets;
    packet = lane - pixel * packets;
  }
  GPU_DEVICE int warp_pixels() const { return kPixels * row_pixels; }
  GPU_DEVICE int pixel_of(int row) const { return kJoined ? 0 : row * row_pixels + pixel; }
  GPU_DEVICE int packet_of(int row) const { return kJoined ? row * 32 + packet : packet; }
  GPU_DEVICE int channel_of(int row) const { return packet_of(row) * gpu::Packet<T>::kSize; }
  GPU_DEVICE bool holds(int row) const { return pixel < row_pixels && packet_of(row) < packets; }
  GPU_DEVICE bool first() const { return packet == 0; }
  GPU_DEVICE bool last() const { return packet == (kJoined ? 31 : packets - 1); }
};

// The packet at `from`, or zeros, to window[kReach] and on.
template <int kReach, typename T, int kWidth>
GPU_DEVICE void load_packet(float (&window)[kWidth], const T* from, bool valid) {
  constexpr int kSize = gpu::Packet<T>::kSize;
  const auto packet = gpu::to_compute(gpu::load<kSize>(from, valid));
#pragma unroll
  for (int v = 0; v < kSize; ++v) window[kReach + v] = packet.values[v];
}

// Fills the kReach numbers before and after each packet from the lanes (kJoined: and rows) beside it; zeros outside the
// pixel. All lanes take part.
template <int kReach, bool kJoined, int kRows, int kWidth>
GPU_DEVICE void fill_reach(float (&windows)[kRows][kWidth], bool first, bool last) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int q = 0; q < kReach; ++q) {
    float row_before = 0, row_after = 0;  // what the end lanes get: of the row beside
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float before = __shfl_sync(~0u, windows[r][kWidth - 2 * kReach + q], (lane + 31) % 32);
      windows[r][q] = first ? row_before : before;
      if (kJoined) row_before = before;
    }
#pragma unroll
    for (int r = kRows - 1; r >= 0; --r) {
      const float after = __shfl_sync(~0u, windows[r][kReach + q], (lane + 1) % 32);
      windows[r][kWidth - kReach + q] = last ? row_after : after;
      if (kJoined) row_after = after;
    }
  }
}

// taps[kReversed ? kTaps - 1 - j : j] * window[j], summed over j.
template <bool kReversed, int kTaps>
GPU_DEVICE float convolve(const float (&taps)[kTaps], const float* window) {
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

// The warp's pixels from `start` on (of `image`, where backward goes image by image): out or, kBackward, grad_input,
// and what a thread adds to its sums for grad_weight.
template <bool kBackward, typename T, int kTaps, int kRows, bool kJoined>
GPU_DEVICE void warp_step(
    const LcdcParams& p, const Place<T, kRows, kJoined>& place, bool shared, int64_t start, int64_t image,
    const ImageView& grad_output, const ImageView& input, const T* __restrict__ weight, const ImageView& result,
    float (&sums)[Place<T, kRows, kJoined>::kPixels][kTaps]) {
  constexpr int kSize = gpu::Packet<T>::kSize, kReach = kTaps / 2, kPixels = Place<T, kRows, kJoined>::kPixels;
  const bool one_image = kBackward && !shared;
  float x[kRows][kSize + 2 * kReach], d[kRows][kSize + 2 * kReach], gated[kRows][kSize];
  float taps[kPixels][kTaps] = {};
  T* to[kRows];  // null: nothing there
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    int64_t pixel = start + place.pixel_of(r);
    const bool valid = place.holds(r) && pixel < (one_image ? p.P : p.N * p.P);
    if (!valid) pixel = 0;
    const gpu::Pixel at = one_image ? gpu::Pixel{image, pixel} : gpu::locate(p.N, p.P, pixel);
    const int channel = place.channel_of(r);
    load_packet<kReach>(x[r], input.pixel<const T>(at.n, at.i) + channel, valid);
    if constexpr (kBackward) load_packet<kReach>(d[r], grad_output.pixel<const T>(at.n, at.i) + channel, valid);
    to[r] = valid ? result.pixel<T>(at.n, at.i) + channel : nullptr;
    if (r < kPixels) load_taps(taps[r % kPixels], weight + (shared ? 0 : at.i * kTaps));
  }
  fill_reach<kReach, kJoined>(x, place.first(), place.last());
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const int c = kReach + v;
      const float a = kBackward && !p.gate ? 0 : convolve<false>(taps[r % kPixels], x[r] + v);
      if constexpr (!kBackward) {
        gated[r][v] = p.gate ? sigmoid<T>(a) * x[r][c] : a;  // out
      } else if (p.gate) {
        const float s = sigmoid<T>(a);
        gated[r][v] = d[r][c] * s;
        d[r][c] = to[r] ? gated[r][v] * x[r][c] * (1 - s) : 0;  // 0, should even the taps not be numbers
      } else {
        gated[r][v] = 0;
      }
    }
  if constexpr (kBackward) fill_reach<kReach, kJoined>(d, place.first(), place.last());
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (!to[r]) continue;
    gpu::Packet<T> packet;
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      if constexpr (kBackward) {
        gated[r][v] += convolve<true>(taps[r % kPixels], d[r] + v);
#pragma unroll
        for (int j = 0; j < kTaps; ++j) sums[r % kPixels][j] += d[r][kReach + v] * x[r][v + j];
      }
      packet.values[v] = gpu::from_compute<T>(gated[r][v]);
    }
    *reinterpret_cast<gpu::Packet<T>*>(to[r]) = packet;
  }
}

// A thread computes kRows packets of out. Every input is read once, by the thread that owns it, every output written
// once, both in whole lines; no shared memory, so nothing waits for a block. Roofline: 2 * s bytes a channel of s bytes
// (42e6 channels, float32: 0.34 GB) against 2 * k + 10 flops and two special functions, which in half types come to 2/3
// of their rate: memory binds, 93 % of the copy bandwidth expected. Not yet measured on a GPU.
template <typename T, int kTaps, int kRows, bool kJoined>
__global__ void __launch_bounds__(kThreads) forward_packets(
    LcdcParams p, ImageView input /* [N, P, C] */, const T* __restrict__ weight /* [1 or P, kTaps] */,
    ImageView out /* [N, P, C] */) {
  const Place<T, kRows, kJoined> place(p.C);
  const int64_t start = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * place.warp_pixels();
  float no_sums[Place<T, kRows, kJoined>::kPixels][kTaps] = {};
  warp_step<false>(p, place, p.shared, start, 0, input, input, weight, out, no_sums);
}

// Blocks of backward_packets on a multiprocessor: as many as their registers allow without spilling.
template <typename T, int kTaps, int kRows>
constexpr int kBackwardBlocks = kRows > 1   ? 1
                                : kTaps > 3 ? 3
                                            : 4;

// As forward_packets, for shared taps; a block takes every gridDim.x-th share of the pixels and writes its sum of the
// products for grad_weight, added in a fixed order, to `partial`. Shared memory: the warps' sums. Roofline: 3 * s bytes
// a channel against 6 * k + 20 flops (float32: 0.50 GB, half types: 0.25 GB, where the instructions come to 4/5 of the
// rate): memory binds, 85 % of the copy bandwidth expected. Not yet measured on a GPU.
template <typename T, int kTaps, int kRows, bool kJoined>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T, kTaps, kRows>) backward_packets(
    LcdcParams p, ImageView grad_output /* [N, P, C] */, ImageView input /* [N, P, C] */,
    const T* __restrict__ weight /* [kTaps] */, ImageView grad_input /* [N, P, C] */,
    float* __restrict__ partial /* [blocks, kTaps] */) {
  using Lanes = Place<T, kRows, kJoined>;
  GPU_SHARED(warp_sums, float[kWarps][kTaps]);
  const Lanes place(p.C);
  const int warp = int(threadIdx.x) / 32, pixels = place.warp_pixels();
  const int64_t step = int64_t(gridDim.x) * kWarps * pixels;
  float sums[Lanes::kPixels][kTaps] = {};
  for (int64_t start = (int64_t(blockIdx.x) * kWarps + warp) * pixels; start < p.N * p.P; start += step)
    warp_step<true>(p, place, true, start, 0, grad_output, input, weight, grad_input, sums);
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < Lanes::kPixels; ++r) sum += sums[r][j];
    sum = gpu::sum_lanes<32>(sum);
    if (threadIdx.x % 32 == 0) warp_sums[warp][j] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kTaps) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += warp_sums[w][threadIdx.x];
  partial[int64_t(blockIdx.x) * kTaps + threadIdx.x] = sum;
}

// The same where each position has its own taps: `slices` warps, a power of two, share the images of a warp's
// positions, and their sums, added in order, are grad_weight. Its reading and writing come on top, k / N of the images'
// at most.
template <typename T, int kTaps, int kRows, bool kJoined>
__global__ void __launch_bounds__(kThreads, kRows > 1 ? 1 : 3) backward_positions(
    LcdcParams p, int slices, ImageView grad_output /* [N, P, C] */, ImageView input /* [N, P, C] */,
    const T* __restrict__ weight /* [P, kTaps] */, ImageView grad_input /* [N, P, C] */,
    T* __restrict__ grad_weight /* [P, kTaps] */) {
  using Lanes = Place<T, kRows, kJoined>;
  GPU_SHARED(warp_sums, float[kWarps][kJoined ? 1 : kRows * 32][kTaps]);
  const Lanes place(p.C);
  const int warp = int(threadIdx.x) / 32, shares = kWarps / slices, pixels = place.warp_pixels();
  const int64_t start = int64_t(blockIdx.x) * shares * pixels;
  float sums[Lanes::kPixels][kTaps] = {};
  for (int64_t image = warp % slices; image < p.N; image += slices)
    warp_step<true>(
        p, place, false, start + warp / slices * pixels, image, grad_output, input, weight, grad_input, sums);
#pragma unroll
  for (int r = 0; r < Lanes::kPixels; ++r)
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      float sum = sums[r][j];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {  // over the lanes of a pixel, any number of them
        const float other = __shfl_down_sync(~0u, sum, step);
        if (kJoined || place.packet + step < place.packets) sum += other;
      }
      if (place.first() && place.holds(r)) warp_sums[warp][place.pixel_of(r)][j] = sum;
    }
  __syncthreads();
  for (int own = int(threadIdx.x); own < shares * pixels * kTaps; own += kThreads) {
    const int j = own % kTaps, unit = own / kTaps, share = unit / pixels;
    float sum = 0;
    for (int slice = 0; slice < slices; ++slice) sum += warp_sums[share * slices + slice][unit - share * pixels][j];
    if (start + unit < p.P) grad_weight[(start + unit) * kTaps + j] = gpu::from_compute<T>(sum);
  }
}

}  // namespace
}  // namespace danet
