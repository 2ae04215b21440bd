// The end of the implicit GEMM of rep_conv (rep_conv_gemm.cuh): the sum over the splits of K, bias, ReLU, and the
// results in global memory.
#pragma once

#include "rep_conv_loader.cuh"

namespace danet {
namespace {

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

// Writes the results of a float32 weight (RepConvGemm::split_out) for one pixel, from the sums of kCount successive
// rows of the split weight, of which `valid` exist.
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

// In a cluster, a thread adds up the splits of K for packets of 16 bytes of sums, which all have the same channels of
// the tile: these channels, and their bias.
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

// Adds up the sums of all blocks of the cluster, in the order of the splits of K, adds the bias, applies ReLU and
// writes the outputs. Each block does so for a part of the tile.
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
  // Load the parts of all splits before the first addition, so that the loads do not wait for each other. Packets that
  // do not exist are replaced by the last one.
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
