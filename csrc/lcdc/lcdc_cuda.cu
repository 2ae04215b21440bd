// LCDC on CUDA devices. Where 16-byte packets fit and k is 3 or 5, a warp keeps whole pixels in registers and shuffles
// pass the channels beyond a packet's ends; all else goes through rows in shared memory.
#include <cmath>
#include <initializer_list>
#include <tuple>

#include "../common/device.h"
#include "../common/ptx.cuh"
#include "lcdc_check.h"

namespace danet {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocksOfSm = 16;             // where blocks loop: several waves, so that the last one costs little
constexpr int kTile = 2048;                 // numbers of a tile of short rows
constexpr size_t kSharedBytes = 96 * 1024;  // what every device gives a block that asks

struct Pixel {
  int64_t n, i;
};
// Pixel number n * P + i.
GPU_DEVICE Pixel locate(const LcdcParams& p, int64_t pixel) {
  if (p.N == 1) return {0, pixel};
  const int64_t n = (pixel | p.P) >> 32 == 0 ? uint32_t(pixel) / uint32_t(p.P) : pixel / p.P;
  return {n, pixel - n * p.P};
}

// For half types the fast one: its relative error of 1e-6 |a| is far below theirs, and the accurate one would bind.
template <typename T>
GPU_DEVICE Compute<T> sigmoid(Compute<T> a) {
  if constexpr (sizeof(T) == 2)
    return __fdividef(1.0f, 1 + __expf(-a));
  else
    return 1 / (1 + std::exp(-a));
}

// --- device: packets in registers ------------------------------------------------------------------------------------

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
  gpu::Packet<T> packet{};
  if (valid) packet = *reinterpret_cast<const gpu::Packet<T>*>(from);
#pragma unroll
  for (int v = 0; v < gpu::Packet<T>::kSize; ++v) window[kReach + v] = gpu::to_compute(packet.values[v]);
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
    const Pixel at = one_image ? Pixel{image, pixel} : locate(p, pixel);
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
constexpr int kBackwardBlocks = kRows > 1 ? 1 : kTaps > 3 ? 3 : 4;

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

// --- device: rows in shared memory -----------------------------------------------------------------------------------

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
      const auto pixel_of = [&](int row) { return p.shared ? locate(p, first + row) : Pixel{first + row, unit}; };
      for (Walk at(thread, kThreads, width); at.row < count; at.next()) {
        const Pixel pixel = pixel_of(at.row);
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
          const Pixel pixel = pixel_of(at.row);
          result.pixel<T>(pixel.n, pixel.i)[at.column] = gpu::from_compute<T>(p.gate ? s * x[own] : a);
        }
      }
      __syncthreads();
      if constexpr (kBackward) {
        for (Walk at(thread, kThreads, C); at.row < count; at.next()) {
          const int row = at.row * width + at.column;
          const Pixel pixel = pixel_of(at.row);
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

// --- host ------------------------------------------------------------------------------------------------------------

using Views = std::initializer_list<ImageView>;

template <typename T>
bool fits_packets(const LcdcParams& p, const Views& views) {
  constexpr int kSize = gpu::Packet<T>::kSize;
  return p.C % kSize == 0 && std::all_of(views.begin(), views.end(), [](const ImageView& view) {
           return view.pixel_stride % kSize == 0 && view.image_stride % kSize == 0 &&
                  reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
         });
}

// With shared taps and where strides allow, all pixels as of one image: the kernels need not divide then.
LcdcParams in_one_line(LcdcParams p, const Views& views) {
  for (const ImageView& view : views)
    if (!p.shared || (p.N > 1 && view.image_stride != p.P * view.pixel_stride)) return p;
  p.P *= p.N;
  p.N = 1;
  return p;
}

// body(kTaps, kRows, kJoined) of the packets' kernels; false where there is none. kRows: more pixels at a time forward,
// while backward needs the registers for more warps.
template <typename T, bool kBackward, typename Body>
bool specialise(const LcdcParams& p, const Views& views, const Body& body) {
  if constexpr (sizeof(T) < 8) {
    const int64_t packets = p.C / gpu::Packet<T>::kSize;
    if ((p.k != 3 && p.k != 5) || packets > 128 || !fits_packets<T>(p, views)) return false;
    const auto with_rows = [&](auto taps) {
      if (packets <= 32) return body(taps, Constant<kBackward ? 1 : 2>{}, Constant<false>{});
      if (packets <= 64) return body(taps, Constant<2>{}, Constant<true>{});
      body(taps, Constant<4>{}, Constant<true>{});
    };
    p.k == 3 ? with_rows(Constant<3>{}) : with_rows(Constant<5>{});
    return true;
  }
  return false;
}

template <typename A>
Tensor numbers(int64_t count, const Tensor& like) {
  constexpr ScalarType kType = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty({count}, kType, std::nullopt, like.device(), std::nullopt, std::nullopt);
}

// Of a warp, as Place has it.
template <typename T, int kRows, bool kJoined>
int warp_pixels(const LcdcParams& p) {
  return kJoined ? 1 : kRows * int(32 * gpu::Packet<T>::kSize / p.C);
}

// A call of through_rows: rows in shared memory or, where one does not fit, in device memory of a bounded size.
template <typename T, bool kBackward>
struct RowsCall {
  using A = Compute<T>;
  int pixels;  // of a tile
  unsigned blocks;
  int64_t size;  // numbers of a block
  size_t shared = 0;
  Tensor memory;
  A* workspace = nullptr;

  RowsCall(const LcdcParams& p, const Tensor& like) {
    const int64_t width = p.C + p.k - 1, all = p.shared ? p.N * p.P : p.N, arrays = kBackward ? 2 + p.gate : 1;
    DANET_CHECK(width < int64_t(1) << 30, "lcdc: too many channels or taps");
    pixels = int(std::max<int64_t>(1, std::min(all, kTile / width)));
    size = arrays * pixels * width + (kBackward ? p.k : 0);
    int64_t most = int64_t(kBlocksOfSm) * gpu::multiprocessors();
    if (size * sizeof(A) <= kSharedBytes) {
      shared = size_t(size) * sizeof(A);
    } else {
      most = std::max<int64_t>(1, std::min(most, (int64_t(1) << 26) / size));
    }
    if (kBackward) most = std::max<int64_t>(1, std::min(most, (int64_t(1) << 22) / p.k));
    blocks = unsigned(std::min(most, p.shared ? (all + pixels - 1) / pixels : p.P));
    if (shared > 0) return;
    memory = numbers<A>(blocks * size, like);
    workspace = static_cast<A*>(memory.mutable_data_ptr());
  }
};

Tensor lcdc(const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams sizes = check_lcdc(input, weight, gate);
  const OnDevice here(input);
  const Image x(input), out(empty_image(input, input.sizes()));
  if (sizes.N * sizes.P * sizes.C == 0) return out.tensor;
  const Tensor weights = torch::stable::contiguous(weight);
  const Views views = {x.view, out.view};
  const LcdcParams p = in_one_line(sizes, views);
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const T* taps = static_cast<const T*>(weights.const_data_ptr());
    const bool done = specialise<T, false>(p, views, [&](auto k, auto rows, auto joined) {
      constexpr int kTaps = decltype(k)::value, kRows = decltype(rows)::value;
      constexpr bool kJoined = decltype(joined)::value;
      const unsigned blocks = blocks_for("lcdc", p.N * p.P, kWarps * warp_pixels<T, kRows, kJoined>(p));
      gpu::launch(
          "lcdc", forward_packets<T, kTaps, kRows, kJoined>, {blocks, kThreads, 0, here.stream()}, p,
          x.view, taps, out.view);
    });
    if (done) return;
    const RowsCall<T, false> call(p, input);
    gpu::launch(
        "lcdc", through_rows<T, false>, {call.blocks, kThreads, call.shared, here.stream()}, p, call.pixels, x.view,
        x.view, taps, out.view, call.workspace, call.size, static_cast<A*>(nullptr), static_cast<T*>(nullptr));
  });
  return out.tensor;
}

std::tuple<Tensor, Tensor> lcdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams sizes = check_lcdc(input, weight, gate);
  check_like("lcdc", "grad_output", grad_output, input, input.sizes());
  const OnDevice here(input);
  const Image grad(grad_output), x(input), grad_input(empty_image(input, input.sizes()));
  Tensor grad_weight = torch::stable::empty(
      weight.sizes(), weight.scalar_type(), std::nullopt, weight.device(), std::nullopt, std::nullopt);
  if (sizes.N * sizes.P * sizes.C == 0) return {grad_input.tensor, torch::stable::zero_(grad_weight)};
  const Tensor weights = torch::stable::contiguous(weight);
  const Views views = {grad.view, x.view, grad_input.view};
  const LcdcParams p = in_one_line(sizes, views);
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const T* taps = static_cast<const T*>(weights.const_data_ptr());
    T* result = static_cast<T*>(grad_weight.mutable_data_ptr());
    Tensor parts;
    unsigned blocks = 0;
    const auto partial = [&] {
      if (!p.shared) return static_cast<A*>(nullptr);
      parts = numbers<A>(blocks * p.k, input);
      return static_cast<A*>(parts.mutable_data_ptr());
    };
    const bool done = specialise<T, true>(p, views, [&](auto k, auto rows, auto joined) {
      constexpr int kTaps = decltype(k)::value, kRows = decltype(rows)::value;
      constexpr bool kJoined = decltype(joined)::value;
      if (p.shared) {
        const int block_pixels = kWarps * warp_pixels<T, kRows, kJoined>(p);
        blocks = std::min(blocks_for("lcdc", p.N * p.P, block_pixels), unsigned(kBlocksOfSm * gpu::multiprocessors()));
        return gpu::launch(
            "lcdc", backward_packets<T, kTaps, kRows, kJoined>, {blocks, kThreads, 0, here.stream()}, p, grad.view,
            x.view, taps, grad_input.view, partial());
      }
      int slices = 1;
      while (slices < kWarps && 2 * slices <= p.N) slices *= 2;
      const int block_positions = kWarps / slices * warp_pixels<T, kRows, kJoined>(p);
      gpu::launch(
          "lcdc", backward_positions<T, kTaps, kRows, kJoined>,
          {blocks_for("lcdc", p.P, block_positions), kThreads, 0, here.stream()}, p, slices, grad.view, x.view, taps,
          grad_input.view, result);
    });
    if (!done) {
      const RowsCall<T, true> call(p, input);
      blocks = call.blocks;
      gpu::launch(
          "lcdc", through_rows<T, true>, {blocks, kThreads, call.shared, here.stream()}, p, call.pixels, grad.view,
          x.view, taps, grad_input.view, call.workspace, call.size, partial(), result);
    }
    if (p.shared)
      gpu::launch(
          "lcdc", sum_parts<T>, {blocks_for("lcdc", p.k, 1), kThreads, 0, here.stream()},
          static_cast<const A*>(parts.const_data_ptr()), int(blocks), result);
  });
  return {grad_input.tensor, grad_weight};
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("lcdc", TORCH_BOX(&lcdc));
  library.impl("lcdc_backward", TORCH_BOX(&lcdc_backward));
}

}  // namespace danet
