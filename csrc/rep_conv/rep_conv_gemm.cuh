// rep_conv, the re-parameterized 3x3 convolution of RepVGG (rep_conv.h), on CUDA devices: the kernels of an implicit
// GEMM, followed by bias and ReLU.
//
//   out[m, n] = sum_k window[m, k] * weight[n, k],   m < M, n < N, k = tap * C + c < K
//
// Here M = batch * H_out * W_out (the output pixels), N = C_out and K = 9 * C. The matrix `window` (im2col) is gathered
// on the way into shared memory and never stored in global memory. A 1x1 convolution has one tap: K = C.
//
// Roofline, computed for C = C_out = 256, 16x20 pixels and float16 on an H200 (790 TFLOP/s, 4.3 TB/s):
//   Batch size 1: The tensor cores compute 0.38 GFLOP in 0.5 us. Device memory moves 1.5 MB in 0.35 us. Both take less
//   time than a launch. Latency is the bottleneck, so K is split over the multiprocessors. From sm_90 on, the splits of a
//   tile are the blocks of a cluster, which add up their sums through distributed shared memory: one launch less.
//   Batch size 32: The tensor cores compute 12 GFLOP in 15 us. Device memory moves 11.7 MB in 2.7 us. The tensor cores
//   are the bottleneck. mma.sync reaches at most about 60 % of their peak rate on sm_90, and all of it on sm_80 to
//   sm_89. We expect 45 % of the peak rate on sm_90, and 70 % on sm_80 to sm_89.
// Not yet measured on a GPU.
#pragma once

#include "../common/device.h"
#include "../common/ptx.cuh"

namespace danet {
namespace {

constexpr int kMaxSplits = 8;  // in a cluster: the size that every device with clusters supports

template <typename T>
struct RepConvGemm {
  const T* input;   // [batch, H, W, C] with image_stride and pixel_stride
  const T* weight;  // [C_out, taps, C]
  const T* bias;    // [C_out] or null
  T* out;           // [batch, H_out, W_out, C_out]
  // [num_splits, batch, H_out, W_out, C_out]: sums over parts of K; null if num_splits is 1, and if the blocks of a cluster
  // are the splits of a tile
  Compute<T>* partial;
  // The kernels compute offsets in the input and in the weight in 32 bits; see has_small_indices in rep_conv_cuda.cu.
  int image_stride, pixel_stride;
  int64_t pixels;                                              // batch * H_out * W_out
  int C, C_out, H, W, H_out, W_out, stride, taps, num_splits;  // taps: 9, or 1 for a 1x1 kernel
  bool relu;
  // For a float32 weight and an input of a half type, each channel of the weight is the sum of two rows of `weight`: its
  // values rounded to T, and the rounding errors. The result is float32, [batch, H_out, W_out, C_out / 2], and so is the
  // bias, [C_out / 2]. split_out is null if the weight has the type T. Only tiles of 64 pixels support this.
  const float* split_bias;
  float* split_out;
  // Division of indices by the pixels of an output image, the pixels of an output row, the input channels, and the blocks
  // of output channels
  gpu::Divisor by_image, by_row, by_channels, by_channel_blocks;
  // Division of the block index: by the splits if they are the blocks of a cluster, else by the tiles
  gpu::Divisor by_splits;
  // Blocks of K. Each split has split_k_blocks of them, and the first ones have one more.
  int k_blocks, split_k_blocks;
};

// --- device: from global to shared memory ----------------------------------------------------------------------------

// The tile of the output that a thread block computes: BLOCK_M pixels x BLOCK_N channels. kWarpsM x kWarpsN warps share
// it. Each warp computes kMmaM x kMmaN MMA tiles of 16 x 8. A pipeline stage holds, of each row of both matrices,
// BLOCK_K_BYTES of the K dimension. The rows are padded, so that eight consecutive rows are in different banks.
template <int kWarpsM, int kWarpsN_, int kMmaM_, int kMmaN_, int BLOCK_K_BYTES_, int kNumStages_>
struct GemmTile {
  static constexpr int kWarpsN = kWarpsN_, kMmaM = kMmaM_, kMmaN = kMmaN_;
  static constexpr int BLOCK_K_BYTES = BLOCK_K_BYTES_, kNumStages = kNumStages_;
  static constexpr int kNumThreads = 32 * kWarpsM * kWarpsN, WARP_M = 16 * kMmaM, WARP_N = 8 * kMmaN;
  static constexpr int BLOCK_M = kWarpsM * WARP_M, BLOCK_N = kWarpsN * WARP_N;
  static constexpr int kPitch = BLOCK_K_BYTES + 16;
  static constexpr bool kCanSplit = BLOCK_M == 64;  // larger tiles are chosen only for outputs that fill the device
  static_assert(kPitch % 16 == 0 && kPitch / 16 % 2 == 1, "8 consecutive rows must be in all 8 groups of 4 banks");
  static_assert(kMmaN % 2 == 0 && BLOCK_K_BYTES % 32 == 0, "ldmatrix_x4 loads 16 channels x 32 bytes of B");

  struct Stage {
    alignas(16) unsigned char smem_a[BLOCK_M][kPitch], smem_b[BLOCK_N][kPitch];
  };
  // The sums over one split of K, which the other blocks of the cluster read. They take the place of the stages.
  template <typename T>
  struct PartialSums {
    static_assert(
        kNumStages * sizeof(Stage) >= sizeof(Compute<T>) * BLOCK_M * (BLOCK_N + 4), "too little shared memory");
    alignas(16) Compute<T> values[BLOCK_M][BLOCK_N + 4];  // padded: two rows are in different banks
  };
};

// The 3x3 input window of an output pixel: the offset of its first tap (which may be outside the input), and a bit mask
// of the taps inside the input. Bit 3 * i + j is the tap in row i and column j of the window. The only tap of a 1x1 kernel
// is tap 0.
struct InputWindow {
  int offset;
  unsigned valid_taps;
};

// Returns the window of an output pixel. Pixels past the last one have no valid taps.
template <typename T>
GPU_DEVICE InputWindow input_window(const RepConvGemm<T>& p, int pixel) {
  if (pixel >= p.pixels) return {0, 0};
  const int n = p.by_image.divide(pixel), rest = pixel - n * int(p.by_image.divisor);
  const int row = p.by_row.divide(rest), column = rest - row * p.W_out;
  const int padding = p.taps == 9 ? 1 : 0;
  const int y = row * p.stride - padding, x = column * p.stride - padding;
  const unsigned valid_columns = (x >= 0 ? 1u : 0u) + 2u + (x + 2 < p.W ? 4u : 0u);  // bit j: column j is inside
  const unsigned valid_rows = (y >= 0 ? 1u : 0u) + 8u + (y + 2 < p.H ? 64u : 0u);    // bit 3 * i: row i is inside
  return {n * p.image_stride + (y * p.W + x) * p.pixel_stride, valid_columns * valid_rows};
}

// Copies kBytes to shared memory; writes zeros if !valid. Copies of 4 bytes or more are asynchronous. cp.async has no
// 2-byte form, so that copies of 2 bytes are synchronous.
template <int kBytes>
GPU_DEVICE void copy_to_shared(void* shared, const void* global, bool valid) {
  if constexpr (kBytes == 2)
    *static_cast<uint16_t*>(shared) = valid ? *static_cast<const uint16_t*>(global) : uint16_t(0);
  else
    gpu::cp_async<kBytes>(shared, global, valid);
}

// Loads the pipeline stages of a thread block, one K block after the other. A thread copies kBytes of every kRows-th
// row, always at the same column.
template <typename T, typename Tile, int kBytes>
struct StageLoader {
  static constexpr int kColumns = Tile::BLOCK_K_BYTES / kBytes, kRows = Tile::kNumThreads / kColumns;
  static constexpr int BLOCK_K = Tile::BLOCK_K_BYTES / int(sizeof(T));
  static_assert(Tile::BLOCK_M % kRows == 0 && Tile::BLOCK_N % kRows == 0, "every pass must copy kRows whole rows");
  static_assert((kRows & (kRows - 1)) == 0 && (Tile::WARP_N & (Tile::WARP_N - 1)) == 0, "channel_of permutes bits");

  const RepConvGemm<T>& p;
  const int row = int(threadIdx.x) / kColumns, byte = int(threadIdx.x) % kColumns * kBytes;
  int k;  // the position of this thread's column in K
  InputWindow windows[Tile::BLOCK_M / kRows];
  int weight_offsets[Tile::BLOCK_N / kRows];

  // block_windows: the windows of all pixels of the tile.
  GPU_DEVICE StageLoader(
      const RepConvGemm<T>& gemm, const InputWindow (&block_windows)[Tile::BLOCK_M], int first_channel, int k_block)
      : p(gemm) {
    k = k_block * BLOCK_K + byte / int(sizeof(T));
    for (int i = 0; i < Tile::BLOCK_M / kRows; ++i) windows[i] = block_windows[row + i * kRows];
    // channel_of permutes bits, so that channel_of(row + i * kRows) is the sum of two parts, one of which is constant.
    const int own_channel = first_channel + channel_of(row);
    for (int i = 0; i < Tile::BLOCK_N / kRows; ++i) {
      const int channel = own_channel + channel_of(i * kRows);
      // Channels past the last one read valid memory, and are not written back.
      weight_offsets[i] = (channel < p.C_out ? channel : p.C_out - 1) * (p.taps * p.C);
    }
  }
  // Returns the channel of the tile that a row of smem_b holds.
  // NOTE: with t = threadID_in_group (ptx.cuh), an MMA gives a lane the columns 2t and 2t + 1 of every 8 columns. The
  // rows are permuted, so that the 2 * kMmaN channels of a lane are contiguous in memory.
  static GPU_DEVICE int channel_of(int row) {
    const int warp = row / Tile::WARP_N, mma_n = row % Tile::WARP_N / 8, thread_in_group = row % 8 / 2;
    return warp * Tile::WARP_N + thread_in_group * 2 * Tile::kMmaN + mma_n * 2 + row % 2;
  }
  // Starts the copies of the next K block.
  GPU_DEVICE void load_next(typename Tile::Stage& stage) {
    const int tap = p.by_channels.divide(k), c = k - tap * p.C;
    const bool exists = tap < p.taps;
    const int window_offset = (tap / 3 * p.W + tap % 3) * p.pixel_stride + c;
    // Copy B
    for (int i = 0; i < Tile::BLOCK_N / kRows; ++i) {
      const T* from = p.weight + (exists ? weight_offsets[i] + k : 0);
      copy_to_shared<kBytes>(&stage.smem_b[row + i * kRows][byte], from, exists);
    }
    // Gather A; taps outside the input are zeros
    for (int i = 0; i < Tile::BLOCK_M / kRows; ++i) {
      const bool inside = exists && (windows[i].valid_taps >> tap & 1);
      const T* from = p.input + (inside ? windows[i].offset + window_offset : 0);
      copy_to_shared<kBytes>(&stage.smem_a[row + i * kRows][byte], from, inside);
    }
    // Advance along K
    k += BLOCK_K;
  }
};

// --- device: multiply-accumulate and epilogue ------------------------------------------------------------------------

// Loads four 8x8 fragments from shared memory (float32: four 8x4 fragments, rounded to tf32).
template <typename T>
GPU_DEVICE void load_fragments(uint32_t (&fragments)[4], const void* shared_row) {
  gpu::ldmatrix_x4</*kTransposed=*/false>(fragments, shared_row);
  if constexpr (std::is_same_v<T, float>)
    for (uint32_t& fragment : fragments) fragment = gpu::to_tf32(__uint_as_float(fragment));
}

// accum += A * B of one stage, on the tensor cores.
// NOTE: in bytes, the fragments of half types (k = 16) and of tf32 (k = 8) have the same layout.
template <typename T, typename Tile>
GPU_DEVICE void multiply_tensor_cores(
    float (&accum)[Tile::kMmaM][Tile::kMmaN][4], const typename Tile::Stage& stage, int warp_m, int warp_n) {
  const int lane_idx = int(threadIdx.x) % 32;
#pragma unroll
  for (int byte = 0; byte < Tile::BLOCK_K_BYTES; byte += 32) {
    // Load the fragments of A
    uint32_t a[Tile::kMmaM][4];
#pragma unroll
    for (int m = 0; m < Tile::kMmaM; ++m)
      load_fragments<T>(a[m], &stage.smem_a[warp_m + m * 16 + lane_idx % 16][byte + lane_idx / 16 * 16]);
#pragma unroll
    for (int n = 0; n < Tile::kMmaN; n += 2) {
      // Load the fragments of B for two MMA tiles, and multiply
      uint32_t fragments[4];
      const int row = warp_n + n * 8 + lane_idx / 16 * 8 + lane_idx % 8;
      load_fragments<T>(fragments, &stage.smem_b[row][byte + lane_idx / 8 % 2 * 16]);
      const uint32_t b[2][2] = {{fragments[0], fragments[1]}, {fragments[2], fragments[3]}};
#pragma unroll
      for (int i = 0; i < 2 * Tile::kMmaM; ++i) {
        if constexpr (std::is_same_v<T, float>)
          gpu::mma_m16n8k8_tf32(accum[i / 2][n + i % 2], a[i / 2], b[i % 2]);
        else
          gpu::mma_m16n8k16<T>(accum[i / 2][n + i % 2], a[i / 2], b[i % 2]);
      }
    }
  }
}

// accum += A * B of one stage, without tensor cores, for float64 and exact float32. A lane computes the same elements
// of accum as with tensor cores. Shared memory is the bottleneck: 12 loads of 16 bytes per 128 multiply-adds.
template <typename T, typename Tile>
GPU_DEVICE void multiply_exact(
    T (&accum)[Tile::kMmaM][Tile::kMmaN][4], const typename Tile::Stage& stage, int warp_m, int warp_n) {
  using Packet = gpu::Packet<T>;
  const int group_id = int(threadIdx.x) % 32 / 4, thread_in_group = int(threadIdx.x) % 4;
#pragma unroll 2
  for (int byte = 0; byte < Tile::BLOCK_K_BYTES; byte += 16) {
    // Load 16 bytes of each of the lane's rows of A
    Packet a[2 * Tile::kMmaM];
#pragma unroll
    for (int m = 0; m < 2 * Tile::kMmaM; ++m)
      a[m] = *reinterpret_cast<const Packet*>(&stage.smem_a[warp_m + m * 8 + group_id][byte]);
#pragma unroll
    for (int n = 0; n < 2 * Tile::kMmaN; ++n) {
      // Load the same bytes of one row of B, and multiply
      const int row = warp_n + n / 2 * 8 + 2 * thread_in_group + n % 2;
      const Packet b = *reinterpret_cast<const Packet*>(&stage.smem_b[row][byte]);
#pragma unroll
      for (int i = 0; i < Packet::kSize; ++i)
#pragma unroll
        for (int m = 0; m < 2 * Tile::kMmaM; ++m)
          accum[m / 2][n / 2][m % 2 * 2 + n % 2] += a[m].values[i] * b.values[i];
    }
  }
}

// Writes the first `valid` of kCount values into a row of row_size elements. Uses vectors of up to 16 bytes if row_size
// is a multiple of their size, so that they are aligned in every row.
template <typename Out, int kCount>
GPU_DEVICE void write_row(Out* to, const Out (&values)[kCount], int valid, int row_size) {
  constexpr int kVector = kCount * sizeof(Out) <= 16 ? kCount : int(16 / sizeof(Out));
  const bool aligned = row_size % kVector == 0;
  for (int i = 0; i < kCount; ++i) {
    if (aligned && i % kVector == 0 && i < valid) {
      gpu::AlignedArray<Out, kVector> vector;
      for (int j = 0; j < kVector; ++j) vector.values[j] = values[i + j];
      *reinterpret_cast<gpu::AlignedArray<Out, kVector>*>(to + i) = vector;
    }
    if (!aligned && i < valid) to[i] = values[i];
  }
}

template <typename T>
GPU_DEVICE T add_bias_relu(Compute<T> sum, Compute<T> bias, bool relu) {
  const Compute<T> value = sum + bias;
  return gpu::from_compute<T>(relu && value < 0 ? Compute<T>(0) : value);  // keeps NaN
}

// Writes the results of a float32 weight (RepConvGemm::split_out) for one pixel, from the sums of kCount successive rows of
// the split weight, of which `valid` exist.
template <typename T, int kCount>
GPU_DEVICE void write_split(
    const RepConvGemm<T>& p, int64_t pixel, int row, const Compute<T> (&sums)[kCount], int valid) {
  float values[kCount / 2];
  for (int i = 0; i < kCount / 2; ++i) {
    const float bias = p.split_bias && 2 * i < valid ? p.split_bias[row / 2 + i] : 0.0f;
    values[i] = add_bias_relu<float>(float(sums[2 * i] + sums[2 * i + 1]), bias, p.relu);
  }
  write_row(p.split_out + pixel * (p.C_out / 2) + row / 2, values, valid / 2, p.C_out / 2);
}

// In a cluster, a thread adds up the splits of K for packets of 16 bytes of sums, which all have the same channels of the
// tile: these channels, and their bias.
template <typename T, typename Tile>
struct ReducedChannels {
  static constexpr int kPacket = 16 / int(sizeof(Compute<T>)), kPackets = Tile::BLOCK_N / kPacket;
  static_assert(Tile::kNumThreads % kPackets == 0, "all packets of a thread must have the same channels");
  int first;
  T bias[kPacket];

  GPU_DEVICE ReducedChannels(const RepConvGemm<T>& p, int block_n)
      : first(block_n + int(threadIdx.x) % kPackets * kPacket) {
    for (int i = 0; i < kPacket; ++i) bias[i] = p.bias && first + i < p.C_out ? p.bias[first + i] : T{};
  }
};

// Adds up the sums of all blocks of the cluster, in the order of the splits of K, adds the bias, applies ReLU and writes
// the outputs. Each block does so for a part of the tile.
template <typename T, typename Tile>
GPU_DEVICE void reduce_in_cluster(
    const RepConvGemm<T>& p, typename Tile::template PartialSums<T>& mine,
    const Compute<T> (&accum)[Tile::kMmaM][Tile::kMmaN][4], int block_m, int block_n, int warp_m, int warp_n,
    int split_idx, const ReducedChannels<T, Tile>& channels) {
  constexpr int kPacket = ReducedChannels<T, Tile>::kPacket, kPackets = ReducedChannels<T, Tile>::kPackets;
  using Packet = gpu::Packet<Compute<T>>;
  const int lane_idx = int(threadIdx.x) % 32;
  // Write the sums of this block to shared memory
  // NOTE: the barrier ensures that all warps have read the last stage, which is overwritten.
  gpu::cp_async_wait<0>();
  __syncthreads();
  for (int m = 0; m < 2 * Tile::kMmaM; ++m)
    for (int i = 0; i < 2 * Tile::kMmaN; i += kPacket) {
      Packet packet;
      for (int j = 0; j < kPacket; ++j) packet.values[j] = accum[m / 2][(i + j) / 2][m % 2 * 2 + j % 2];
      const int row = warp_m + m * 8 + lane_idx / 4, column = warp_n + lane_idx % 4 * 2 * Tile::kMmaN + i;
      *reinterpret_cast<Packet*>(&mine.values[row][column]) = packet;
    }
  gpu::cluster_arrive();
  gpu::cluster_wait();
  // Load the parts of all splits before the first addition, so that the loads do not wait for each other. Packets that do
  // not exist are replaced by the last one.
  constexpr int kSteps = (Tile::BLOCK_M * kPackets + 2 * Tile::kNumThreads - 1) / (2 * Tile::kNumThreads);
  constexpr int kLastPacket = Tile::BLOCK_M * kPackets - 1;
  const int first = split_idx * Tile::kNumThreads + int(threadIdx.x), step = p.num_splits * Tile::kNumThreads;
  Packet sums[kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    sums[k] = {};
    if (k > 0 && k * step > kLastPacket) break;  // the same for all threads
    const int packet = first + k * step < kLastPacket ? first + k * step : kLastPacket;
    Compute<T>* here = &mine.values[packet / kPackets][packet % kPackets * kPacket];
    Packet parts[kMaxSplits];
#pragma unroll
    for (int split = 0; split < kMaxSplits; ++split) {
      parts[split] = {};
      if (split < p.num_splits) parts[split] = *reinterpret_cast<const Packet*>(gpu::map_shared(here, unsigned(split)));
    }
#pragma unroll
    for (int split = 0; split < kMaxSplits; ++split)
      for (int j = 0; j < kPacket; ++j) sums[k].values[j] += parts[split].values[j];
  }
  gpu::cluster_arrive();
  // Add the bias, apply ReLU and write back
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const int packet = first + k * step, channel = channels.first;
    const int64_t pixel = block_m + packet / kPackets;
    if (packet > kLastPacket || pixel >= p.pixels || channel >= p.C_out) continue;
    if constexpr (sizeof(T) == 2)
      if (p.split_out) {
        write_split(p, pixel, channel, sums[k].values, p.C_out - channel);
        continue;
      }
    T values[kPacket];
    for (int j = 0; j < kPacket; ++j)
      values[j] = add_bias_relu<T>(sums[k].values[j], gpu::to_compute(channels.bias[j]), p.relu);
    write_row(p.out + pixel * p.C_out + channel, values, p.C_out - channel, p.C_out);
  }
  // Do not exit before the other blocks have read the sums of this one
  gpu::cluster_wait();
}

// A thread block computes one tile over one split of K. The splits of a tile are the blocks of a cluster, or else write
// partial sums that rep_conv_reduce_splits adds up. Consecutive tiles have the same pixels and different channels: they
// share the input in the L2 cache, which also holds the small weight. Dynamic shared memory is a ring buffer of
// kNumStages pipeline stages. While one stage is multiplied, the others are being loaded. A lane accumulates 2 * kMmaN
// contiguous channels of 2 * kMmaM pixels and writes them to global memory directly. kBytes is the size of a copy: 16
// if C, the strides and the addresses are multiples of 16 bytes. Tensor cores compute half types, and float32 as tf32.
template <typename T, bool kTensorCores, typename Tile, int kBytes>
__global__ void __launch_bounds__(Tile::kNumThreads) rep_conv_gemm(RepConvGemm<T> p) {
  GPU_DYNAMIC_SHARED(typename Tile::Stage, stages);
  constexpr int kPrefetch = Tile::kNumStages - 1, kLaneChannels = 2 * Tile::kMmaN;
  const bool in_cluster = Tile::kCanSplit && p.num_splits > 1 && !p.partial;
  const int quotient = p.by_splits.divide(int(blockIdx.x));
  const int remainder = int(blockIdx.x) - quotient * int(p.by_splits.divisor);
  const int tile_idx = in_cluster ? quotient : remainder, split_idx = in_cluster ? remainder : quotient;
  const int m_idx = p.by_channel_blocks.divide(tile_idx);
  const int block_m = m_idx * Tile::BLOCK_M;
  const int block_n = (tile_idx - m_idx * int(p.by_channel_blocks.divisor)) * Tile::BLOCK_N;
  const int warp_idx = int(threadIdx.x) / 32, lane_idx = int(threadIdx.x) % 32;
  const int warp_m = warp_idx / Tile::kWarpsN * Tile::WARP_M;
  const int warp_n = warp_idx % Tile::kWarpsN * Tile::WARP_N;

  // Prologue: start loading the first K blocks of this split
  using Loader = StageLoader<T, Tile, kBytes>;
  const int larger_splits = p.k_blocks - p.num_splits * p.split_k_blocks;
  const int begin = split_idx * p.split_k_blocks + (split_idx < larger_splits ? split_idx : larger_splits);
  const int num_k_blocks = p.split_k_blocks + (split_idx < larger_splits ? 1 : 0);
  GPU_SHARED(windows, InputWindow[Tile::BLOCK_M]);
  static_assert(Tile::BLOCK_M <= Tile::kNumThreads, "each thread computes at most one window");
  if (int(threadIdx.x) < Tile::BLOCK_M) {
    const InputWindow window = input_window(p, block_m + int(threadIdx.x));
    windows[threadIdx.x].offset = window.offset;
    windows[threadIdx.x].valid_taps = window.valid_taps;
  }
  __syncthreads();
  Loader loader(p, windows, block_n, begin);
  // The launch before this one may still be running: it may write the input, and read the memory that becomes the output.
  gpu::wait_for_previous_launch();
  gpu::start_next_launch();
#pragma unroll 1
  for (int k_block = 0; k_block < kPrefetch; ++k_block) {
    if (k_block < num_k_blocks) loader.load_next(stages[k_block]);
    gpu::cp_async_commit();
  }
  // Load the bias now, so that the reduction in a cluster does not wait for it
  const ReducedChannels<T, Tile> reduced(p, block_n);
  Compute<T> accum[Tile::kMmaM][Tile::kMmaN][4] = {};
  int stage = 0;
  for (int k_block = 0; k_block < num_k_blocks; ++k_block) {
    // Wait until this stage is loaded
    // NOTE: the barrier also ensures that all warps have read the previous stage, which is overwritten next.
    gpu::cp_async_wait<kPrefetch - 1>();
    __syncthreads();
    // Prefetch a later K block
    // NOTE: commits a group even if it is empty, so that the number of pending groups stays constant.
    if (k_block + kPrefetch < num_k_blocks) loader.load_next(stages[stage == 0 ? kPrefetch : stage - 1]);
    gpu::cp_async_commit();
    // Multiply and accumulate
    if constexpr (kTensorCores)
      multiply_tensor_cores<T, Tile>(accum, stages[stage], warp_m, warp_n);
    else
      multiply_exact<T, Tile>(accum, stages[stage], warp_m, warp_n);
    stage = stage == kPrefetch ? 0 : stage + 1;
  }

  if constexpr (Tile::kCanSplit)
    if (in_cluster) {
      auto& sums = *reinterpret_cast<typename Tile::template PartialSums<T>*>(stages);
      return reduce_in_cluster<T, Tile>(p, sums, accum, block_m, block_n, warp_m, warp_n, split_idx, reduced);
    }
  // Epilogue: add the bias, apply ReLU and write back; with split K, write the partial sums
  const int channel = block_n + warp_n + lane_idx % 4 * kLaneChannels, valid = p.C_out - channel;
  Compute<T> bias[kLaneChannels];
  for (int i = 0; i < kLaneChannels; ++i) bias[i] = p.bias && i < valid ? gpu::to_compute(p.bias[channel + i]) : 0;
  for (int m = 0; m < 2 * Tile::kMmaM; ++m) {
    const int64_t pixel = block_m + warp_m + m * 8 + lane_idx / 4;
    if (pixel >= p.pixels) break;
    Compute<T> sums[kLaneChannels];
    T values[kLaneChannels];
    for (int i = 0; i < kLaneChannels; ++i) {
      sums[i] = accum[m / 2][i / 2][m % 2 * 2 + i % 2];
      values[i] = add_bias_relu<T>(sums[i], bias[i], p.relu);
    }
    if (p.partial)
      write_row(p.partial + (split_idx * p.pixels + pixel) * p.C_out + channel, sums, valid, p.C_out);
    else if (Tile::kCanSplit && sizeof(T) == 2 && p.split_out)
      write_split(p, pixel, channel, sums, valid);
    else
      write_row(p.out + pixel * p.C_out + channel, values, valid, p.C_out);
  }
}

// Sums the splits of K in order, adds the bias and applies ReLU. A thread computes one output element. The L2 cache,
// which still holds the partial sums, is the bottleneck.
template <typename T>
__global__ void __launch_bounds__(128) rep_conv_reduce_splits(RepConvGemm<T> p) {
  const int64_t count = p.pixels * p.C_out, i = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (i >= count) return;
  Compute<T> sum = 0;
  if (p.split_out) {
    // One thread adds up both rows of a channel of a split weight
    if (i % 2 != 0) return;
    Compute<T> sums[2] = {};
    for (int split = 0; split < p.num_splits; ++split)
      for (int part = 0; part < 2; ++part) sums[part] += p.partial[split * count + i + part];
    const int row = int(unsigned(i) % unsigned(p.C_out));
    return write_split(p, i / p.C_out, row, sums, p.C_out - row);
  }
#pragma unroll 4
  for (int split = 0; split < p.num_splits; ++split) sum += p.partial[split * count + i];
  const int channel = int(unsigned(i) % unsigned(p.C_out));  // i fits 32 bits: only small outputs are split
  p.out[i] = add_bias_relu<T>(sum, p.bias ? gpu::to_compute(p.bias[channel]) : 0, p.relu);
}

}  // namespace
}  // namespace danet
