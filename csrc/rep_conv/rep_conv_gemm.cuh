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
//   time than a launch. Latency is the bottleneck, so K is split over the multiprocessors. From sm_90 on, the splits of
//   a tile are the blocks of a cluster, which add up their sums through distributed shared memory: one launch
//   less.
//   Batch size 32: The tensor cores compute 12 GFLOP in 15 us. Device memory moves 11.7 MB in 2.7 us. The tensor cores
//   are the bottleneck. mma.sync reaches at most about 60 % of their peak rate on sm_90, and all of it on sm_80 to
//   sm_89. We expect 45 % of the peak rate on sm_90, and 70 % on sm_80 to sm_89.
// Not yet measured on a GPU.
#pragma once

#include "rep_conv_epilogue.cuh"
#include "rep_conv_loader.cuh"

namespace danet {
namespace {

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
  // The launch before this one may still be running: it may write the input, and read the memory that becomes the
  // output.
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

}  // namespace
}  // namespace danet
