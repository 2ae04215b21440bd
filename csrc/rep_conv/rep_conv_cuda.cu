// rep_conv on CUDA devices: a matrix product, out[pixel, o] = sum_k window[pixel, k] * weight[o, k], k = tap * C + c,
// whose first factor is gathered on the way into shared memory and never stored; then bias and ReLU.
//
// Roofline, computed, of C = C_out = 256, 16x20 pixels, float16, on an H200 (790 TFLOP/s, 4.3 TB/s):
// N = 1: 0.38 GFLOP (0.5 us), 1.5 MB (0.35 us), less than a launch takes: latency binds, so K is split over the device.
// N = 32: 12 GFLOP (15 us), 11.7 MB (2.7 us): the tensor cores bind. mma.sync reaches at most about 60 % of them on
// sm_90, all of them on sm_80 to 89; expected shares 45 % and 70 %. Not yet measured on a GPU.
#include "../common/device.h"
#include "../common/ptx.cuh"
#include "rep_conv_check.h"
#include "rep_conv_library.h"

namespace danet {
namespace {

template <typename T>
struct Problem {
  const T* input;       // [N, H, W, C] with image_stride and pixel_stride
  const T* weight;      // [C_out, 3, 3, C]
  const T* bias;        // [C_out] or null
  T* out;               // [N, H_out, W_out, C_out]
  Compute<T>* partial;  // [parts, N, H_out, W_out, C_out]: sums over parts of K; null where there is one part
  int64_t image_stride, pixel_stride, pixels;  // pixels: N * H_out * W_out
  int C, C_out, H, W, H_out, W_out, stride, parts;
  bool relu;
};

// --- device: from global memory to a tile ----------------------------------------------------------------------------

// A block's tile: a grid of warps, of 16 * kM pixels times 8 * kN channels each. A stage holds one step of both
// matrices, kRowBytes of K, in rows padded so that eight side by side lie in different banks.
template <int kWarpsM, int kWarpsN_, int kM_, int kN_, int kRowBytes_, int kStages_>
struct Tile {
  static constexpr int kWarpsN = kWarpsN_, kM = kM_, kN = kN_, kRowBytes = kRowBytes_, kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN, kWarpPixels = 16 * kM, kWarpChannels = 8 * kN;
  static constexpr int kPixels = kWarpsM * kWarpPixels, kChannels = kWarpsN * kWarpChannels;
  static constexpr int kPitch = kRowBytes + 16;
  static_assert(kPitch % 16 == 0 && kPitch / 16 % 2 == 1, "an 8x8 matrix's rows must lie in all 8 groups of 4 banks");
  static_assert(kN % 2 == 0 && kRowBytes % 32 == 0, "load_matrices takes 16 channels, 32 bytes");

  struct Stage {
    alignas(16) unsigned char pixels[kPixels][kPitch], channels[kChannels][kPitch];
  };
};

// The window of an output pixel: where its first tap lies, perhaps outside the input, and which taps are inside (bits).
struct Window {
  int64_t offset;
  unsigned taps;
};

// The window of the pixel `row` after `first`.
template <typename T>
GPU_DEVICE Window window_of(const Problem<T>& p, int64_t first, int row) {
  if (first + row >= p.pixels) return {0, 0};
  const unsigned size = unsigned(p.H_out) * p.W_out;  // at most 2^30, so that only one division needs 64 bits
  const unsigned i = unsigned(first % size) + row, rest = i % size;
  const int64_t n = first / size + i / size;
  const int y = int(rest / p.W_out) * p.stride - 1, x = int(rest % p.W_out) * p.stride - 1;
  const unsigned columns = (x >= 0 ? 1u : 0u) + 2u + (x + 2 < p.W ? 4u : 0u);
  const unsigned rows = (y >= 0 ? 1u : 0u) + 8u + (y + 2 < p.H ? 64u : 0u);
  return {n * p.image_stride + (int64_t(y) * p.W + x) * p.pixel_stride, columns * rows};
}

// Copies 2 bytes at once, which has no asynchronous form, or more.
template <int kBytes>
GPU_DEVICE void copy(void* shared, const void* global, bool valid) {
  if constexpr (kBytes == 2)
    *static_cast<uint16_t*>(shared) = valid ? *static_cast<const uint16_t*>(global) : uint16_t(0);
  else
    gpu::copy_async<kBytes>(shared, global, valid);
}

// A thread's share of the copies of a stage: always the same kBytes, of every kRows-th row.
template <typename T, typename Tile, int kBytes>
struct Copier {
  static constexpr int kColumns = Tile::kRowBytes / kBytes, kRows = Tile::kThreads / kColumns;
  static constexpr int kDepth = Tile::kRowBytes / int(sizeof(T));
  static_assert(Tile::kPixels % kRows == 0 && Tile::kChannels % kRows == 0, "whole passes");

  const Problem<T>& p;
  const int row = int(threadIdx.x) / kColumns, byte = int(threadIdx.x) % kColumns * kBytes;
  int tap, c;  // of its column of K
  Window windows[Tile::kPixels / kRows];
  int64_t weights[Tile::kChannels / kRows];

  GPU_DEVICE Copier(const Problem<T>& problem, int64_t pixel, int first_channel, int step) : p(problem) {
    const int k = step * kDepth + byte / int(sizeof(T));
    tap = k / p.C, c = k % p.C;
    for (int i = 0; i < Tile::kPixels / kRows; ++i) windows[i] = window_of(p, pixel, row + i * kRows);
    for (int i = 0; i < Tile::kChannels / kRows; ++i) {
      const int channel = first_channel + channel_of(row + i * kRows);  // what lies past the last is never stored
      weights[i] = int64_t(channel < p.C_out ? channel : p.C_out - 1) * 9 * p.C;
    }
  }
  // Which channel of the tile lies in a row. A product gives lanes numbers 2t and 2t + 1 of every eight rows: these are
  // to be a lane's own 2 * kN channels, side by side in memory.
  static GPU_DEVICE int channel_of(int row) {
    const int warp = row / Tile::kWarpChannels, n = row % Tile::kWarpChannels / 8, t = row % 8 / 2;
    return warp * Tile::kWarpChannels + t * 2 * Tile::kN + n * 2 + row % 2;
  }
  // Begins the copies of the next step.
  GPU_DEVICE void next(typename Tile::Stage& stage) {
    const bool exists = tap < 9;
    const int64_t in_window = (int64_t(tap / 3) * p.W + tap % 3) * p.pixel_stride + c, in_weight = tap * p.C + c;
    for (int i = 0; i < Tile::kPixels / kRows; ++i) {
      const bool inside = exists && (windows[i].taps >> tap & 1);
      const T* from = p.input + (inside ? windows[i].offset + in_window : 0);
      copy<kBytes>(&stage.pixels[row + i * kRows][byte], from, inside);
    }
    for (int i = 0; i < Tile::kChannels / kRows; ++i) {
      const T* from = p.weight + (exists ? weights[i] + in_weight : 0);
      copy<kBytes>(&stage.channels[row + i * kRows][byte], from, exists);
    }
    for (c += kDepth; c >= p.C && tap < 9; c -= p.C) ++tap;
  }
};

// --- device: products and sums ---------------------------------------------------------------------------------------

template <typename T>
GPU_DEVICE void load_factors(uint32_t (&factors)[4], const void* shared_row) {
  gpu::load_matrices<false>(factors, shared_row);
  if constexpr (std::is_same_v<T, float>)
    for (uint32_t& factor : factors) factor = gpu::tf32(__uint_as_float(factor));
}

// Adds a stage's products to a warp's sums. In bytes, the factors of half types and of tf32 are laid out alike.
template <typename T, typename Tile>
GPU_DEVICE void multiply_by_tensor_cores(
    float (&sums)[Tile::kM][Tile::kN][4], const typename Tile::Stage& stage, int warp_pixel, int warp_channel) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int byte = 0; byte < Tile::kRowBytes; byte += 32) {
    uint32_t a[Tile::kM][4];
#pragma unroll
    for (int m = 0; m < Tile::kM; ++m)
      load_factors<T>(a[m], &stage.pixels[warp_pixel + m * 16 + lane % 16][byte + lane / 16 * 16]);
#pragma unroll
    for (int n = 0; n < Tile::kN; n += 2) {
      uint32_t both[4];
      const int row = warp_channel + n * 8 + lane / 16 * 8 + lane % 8;
      load_factors<T>(both, &stage.channels[row][byte + lane / 8 % 2 * 16]);
      const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
      for (int i = 0; i < 2 * Tile::kM; ++i) {
        if constexpr (std::is_same_v<T, float>)
          gpu::multiply_m16n8k8_tf32(sums[i / 2][n + i % 2], a[i / 2], b[i % 2]);
        else
          gpu::multiply_m16n8k16<T>(sums[i / 2][n + i % 2], a[i / 2], b[i % 2]);
      }
    }
  }
}

// The same without tensor cores: a lane computes the sums that they would give it. Bound by shared memory: 12 loads of
// 16 bytes for 128 multiply-adds.
template <typename T, typename Tile>
GPU_DEVICE void multiply_exactly(
    T (&sums)[Tile::kM][Tile::kN][4], const typename Tile::Stage& stage, int warp_pixel, int warp_channel) {
  using Packet = gpu::Packet<T>;
  const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
#pragma unroll 2
  for (int byte = 0; byte < Tile::kRowBytes; byte += 16) {
    Packet a[2 * Tile::kM];
#pragma unroll
    for (int m = 0; m < 2 * Tile::kM; ++m)
      a[m] = *reinterpret_cast<const Packet*>(&stage.pixels[warp_pixel + m * 8 + g][byte]);
#pragma unroll
    for (int n = 0; n < 2 * Tile::kN; ++n) {
      const int row = warp_channel + n / 2 * 8 + 2 * t + n % 2;
      const Packet b = *reinterpret_cast<const Packet*>(&stage.channels[row][byte]);
#pragma unroll
      for (int i = 0; i < Packet::kSize; ++i)
#pragma unroll
        for (int m = 0; m < 2 * Tile::kM; ++m) sums[m / 2][n / 2][m % 2 * 2 + n % 2] += a[m].values[i] * b.values[i];
    }
  }
}

// Writes the first `room` of the values into a row of row_size, 16 bytes at once where rows are aligned to that.
template <typename Out, int kCount>
GPU_DEVICE void store(Out* to, const Out (&values)[kCount], int room, int row_size) {
  constexpr int kAtOnce = kCount * sizeof(Out) <= 16 ? kCount : int(16 / sizeof(Out));
  const bool aligned = row_size % kAtOnce == 0;
  for (int i = 0; i < kCount; ++i) {
    if (aligned && i % kAtOnce == 0 && i < room) {
      gpu::AlignedArray<Out, kAtOnce> group;
      for (int j = 0; j < kAtOnce; ++j) group.values[j] = values[i + j];
      *reinterpret_cast<gpu::AlignedArray<Out, kAtOnce>*>(to + i) = group;
    }
    if (!aligned && i < room) to[i] = values[i];
  }
}

template <typename T>
GPU_DEVICE T finished(Compute<T> sum, Compute<T> bias, bool relu) {
  const Compute<T> value = sum + bias;
  return gpu::from_compute<T>(relu && value < 0 ? Compute<T>(0) : value);  // a NaN stays one
}

// A block computes a tile, over one part of K; blocks side by side share the pixels, and read the small weight from the
// L2 cache. Dynamic shared memory is a ring of Tile::kStages stages, all but one of them on their way. A lane owns the
// same 2 * kN channels of 2 * kM pixels, which it writes without detour. kBytes are copied at once: 16 where C, strides
// and addresses are multiples of that. Tensor cores take half types, and float32 as tf32.
template <typename T, bool kTensorCores, typename Tile, int kBytes>
__global__ void __launch_bounds__(Tile::kThreads) convolve_tile(Problem<T> p) {
  GPU_DYNAMIC_SHARED(typename Tile::Stage, stages);
  constexpr int kAhead = Tile::kStages - 1, kOwn = 2 * Tile::kN;
  const unsigned tiles = gridDim.x / p.parts, tile = blockIdx.x % tiles, part = blockIdx.x / tiles;
  const unsigned channel_tiles = unsigned(p.C_out + Tile::kChannels - 1) / Tile::kChannels;
  const int64_t tile_pixel = int64_t(tile / channel_tiles) * Tile::kPixels;
  const int tile_channel = int(tile % channel_tiles) * Tile::kChannels;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int warp_pixel = warp / Tile::kWarpsN * Tile::kWarpPixels;
  const int warp_channel = warp % Tile::kWarpsN * Tile::kWarpChannels;

  using Copies = Copier<T, Tile, kBytes>;
  const int64_t all_steps = (9 * p.C + Copies::kDepth - 1) / Copies::kDepth;
  const int begin = int(all_steps * part / p.parts), steps = int(all_steps * (part + 1) / p.parts) - begin;
  Copies copies(p, tile_pixel, tile_channel, begin);
  for (int step = 0; step < kAhead; ++step) {
    if (step < steps) copies.next(stages[step]);
    gpu::commit_copies();
  }
  Compute<T> sums[Tile::kM][Tile::kN][4] = {};
  for (int step = 0; step < steps; ++step) {
    gpu::wait_for_copies<kAhead - 1>();
    __syncthreads();  // this step has landed for all, and all are done with the last one, which is overwritten now
    if (step + kAhead < steps) copies.next(stages[(step + kAhead) % Tile::kStages]);
    gpu::commit_copies();  // also an empty group, so that counting them stays right
    if constexpr (kTensorCores)
      multiply_by_tensor_cores<T, Tile>(sums, stages[step % Tile::kStages], warp_pixel, warp_channel);
    else
      multiply_exactly<T, Tile>(sums, stages[step % Tile::kStages], warp_pixel, warp_channel);
  }

  const int channel = tile_channel + warp_channel + lane % 4 * kOwn, room = p.C_out - channel;
  Compute<T> bias[kOwn];
  for (int i = 0; i < kOwn; ++i) bias[i] = p.bias && i < room ? gpu::to_compute(p.bias[channel + i]) : 0;
  for (int m = 0; m < 2 * Tile::kM; ++m) {
    const int64_t pixel = tile_pixel + warp_pixel + m * 8 + lane / 4;
    if (pixel >= p.pixels) break;
    Compute<T> own[kOwn];
    T values[kOwn];
    for (int i = 0; i < kOwn; ++i) {
      own[i] = sums[m / 2][i / 2][m % 2 * 2 + i % 2];
      values[i] = finished<T>(own[i], bias[i], p.relu);
    }
    if (p.partial)
      store(p.partial + (part * p.pixels + pixel) * p.C_out + channel, own, room, p.C_out);
    else
      store(p.out + pixel * p.C_out + channel, values, room, p.C_out);
  }
}

// Adds the parts in order: a thread, one number. Bound by the L2 cache, where the parts still are.
template <typename T>
__global__ void __launch_bounds__(128) add_parts(Problem<T> p) {
  const int64_t count = p.pixels * p.C_out, i = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (i >= count) return;
  Compute<T> sum = 0;
#pragma unroll 4
  for (int part = 0; part < p.parts; ++part) sum += p.partial[part * count + i];
  const int channel = int(unsigned(i) % unsigned(p.C_out));  // only small outputs have parts
  p.out[i] = finished<T>(sum, p.bias ? gpu::to_compute(p.bias[channel]) : 0, p.relu);
}

// --- host ------------------------------------------------------------------------------------------------------------

//                       warps, 16 pixels, 8 channels each, bytes a row, stages
using Large = Tile<2, 4, 4, 4, 64, 4>;    // 128 x 128
using Tall = Tile<2, 2, 4, 4, 64, 4>;     // 128 x 64
using Square = Tile<2, 2, 2, 4, 128, 3>;  // 64 x 64
using Narrow = Tile<2, 2, 2, 2, 128, 3>;  // 64 x 32
using Slow = Tile<2, 2, 2, 2, 64, 4>;     // 64 x 32 with less to copy, for copies of less than 16 bytes

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The choice of a tile: the largest of which every multiprocessor gets two, else one that leaves more of them.
template <typename Use>
void with_tile(int64_t pixels, int64_t C_out, Use use) {
  const int64_t enough = 2 * gpu::multiprocessors();
  if (C_out <= 32) return use(Narrow{});
  if (C_out > 64 && ceil_div(pixels, 128) * ceil_div(C_out, 128) >= enough) return use(Large{});
  if (ceil_div(pixels, 128) * ceil_div(C_out, 64) >= enough) return use(Tall{});
  use(Square{});
}

// Runs convolve_tile, with K in as many parts as give every multiprocessor a block, but of no less than four steps.
template <typename T, bool kTensorCores, typename Tile, int kBytes>
void start(Problem<T> p, const Tensor& out, gpu::Stream stream) {
  const int64_t tiles = ceil_div(p.pixels, Tile::kPixels) * ceil_div(p.C_out, Tile::kChannels);
  const int64_t steps = ceil_div(9 * p.C * sizeof(T), Tile::kRowBytes);
  p.parts = int(std::max<int64_t>(1, std::min(gpu::multiprocessors() / tiles, steps / 4)));
  std::optional<Tensor> partial;
  if (p.parts > 1) {
    const ScalarType type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
    partial = torch::stable::empty({p.parts * p.pixels * p.C_out}, type, std::nullopt, out.device());
    p.partial = static_cast<Compute<T>*>(partial->mutable_data_ptr());
  }
  const unsigned blocks = blocks_for("rep_conv", tiles * p.parts, 1);
  gpu::launch(
      "rep_conv", convolve_tile<T, kTensorCores, Tile, kBytes>,
      {blocks, Tile::kThreads, Tile::kStages * sizeof(typename Tile::Stage), stream}, p);
  const unsigned adders = blocks_for("rep_conv", p.pixels * p.C_out, 128);
  if (partial) gpu::launch("rep_conv", add_parts<T>, {adders, 128, 0, stream}, p);
}

// Whether all rows begin at multiples of `bytes`.
template <typename T>
bool aligned(const Problem<T>& p, int64_t bytes) {
  return (reinterpret_cast<uintptr_t>(p.input) | reinterpret_cast<uintptr_t>(p.weight)) % bytes == 0 &&
         (p.image_stride | p.pixel_stride | p.C) * int64_t(sizeof(T)) % bytes == 0;
}

template <typename T>
void choose_kernel(const Problem<T>& p, bool tf32, const Tensor& out, gpu::Stream stream) {
  constexpr bool kHalf = sizeof(T) == 2, kDouble = sizeof(T) == 8;
  if constexpr (!kHalf)
    if (kDouble || !tf32)
      return aligned(p, 16) ? start<T, false, Square, 16>(p, out, stream)
                            : start<T, false, Slow, sizeof(T)>(p, out, stream);
  if constexpr (!kDouble) {
    if (aligned(p, 16))
      return with_tile(p.pixels, p.C_out, [&](auto tile) { start<T, true, decltype(tile), 16>(p, out, stream); });
    if (aligned(p, 4)) return start<T, true, Slow, 4>(p, out, stream);
    start<T, true, Slow, kHalf ? 2 : 4>(p, out, stream);
  }
}

// Where torch's convolution (cuDNN) is called: for what our kernels cannot count in 32 bits, and where it is faster
// though its bias and ReLU are passes of their own: for many operations a number. A guess until measured.
bool uses_library(const RepConvParams& p, int64_t stride, ScalarType type, bool tf32) {
#if defined(DANET_EMULATION)
  return false;
#endif
  if (p.H * p.W >= 1 << 30 || p.C >= 1 << 26 || p.C_out >= 1 << 26) return true;
  const double flops = 18.0 * p.C * p.C_out * p.N * ceil_div(p.H, stride) * ceil_div(p.W, stride);
  const bool exact = type == ScalarType::Double || (type == ScalarType::Float && !tf32);
  return exact ? p.C >= 16 && flops > 4e9 : p.C >= 128 && p.C_out >= 128 && flops > 2e10;
}

template <typename T>
Tensor convolve(
    const RepConvParams& p, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    int64_t stride, bool tf32, gpu::Stream stream) {
  const int64_t H_out = ceil_div(p.H, stride), W_out = ceil_div(p.W, stride);
  const Tensor out = empty_image(input, {p.N, p.C_out, H_out, W_out});
  if (p.N == 0) return out;
  const Image x(input);
  std::optional<Tensor> dense;
  if (bias) dense = torch::stable::contiguous(*bias);
  const Problem<T> problem{
      static_cast<const T*>(x.view.data),
      static_cast<const T*>(weight.const_data_ptr()),
      static_cast<const T*>(dense ? dense->const_data_ptr() : nullptr),
      static_cast<T*>(out.mutable_data_ptr()),
      nullptr,
      x.view.image_stride,
      x.view.pixel_stride,
      p.N * H_out * W_out,
      int(p.C),
      int(p.C_out),
      int(p.H),
      int(p.W),
      int(H_out),
      int(W_out),
      int(stride),
      1,
      p.relu};
  choose_kernel(problem, tf32, out, stream);
  return out;
}

Tensor rep_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>&, const std::optional<Tensor>& bias,
    int64_t stride, bool relu, bool tf32) {
  const RepConvParams p = check_rep_conv(input, weight, bias, stride, relu);
  const OnDevice here(input);
  const Tensor rows = torch::stable::contiguous(weight, MemoryFormat::ChannelsLast);  // [C_out, 3, 3, C] in memory
  if (uses_library(p, stride, input.scalar_type(), tf32))
    return torch::stable::contiguous(
        call_library(torch::stable::contiguous(input, MemoryFormat::ChannelsLast), rows, bias, stride, relu),
        MemoryFormat::ChannelsLast);
  Tensor out;
  with_type(input, [&](auto t) { out = convolve<decltype(t)>(p, input, rows, bias, stride, tf32, here.stream()); });
  return out;
}

// The kernels read the weight itself.
Tensor prepare_rep_conv(const Tensor& weight, int64_t) {
  return torch::stable::empty({0}, weight.scalar_type(), std::nullopt, weight.device());
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("rep_conv", TORCH_BOX(&rep_conv));
  library.impl("prepare_rep_conv", TORCH_BOX(&prepare_rep_conv));
}

}  // namespace danet
