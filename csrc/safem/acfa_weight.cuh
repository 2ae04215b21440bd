// acfa_weight, the channel weights of ACFA's deeper level (safem.h), on CUDA devices, for float16 and bfloat16. One
// kernel sums the samples over the pixels of each block; a second one adds up the blocks of an image, and computes its
// weights. Not yet measured on a GPU.
#pragma once

#include "safem_pass.cuh"

namespace danet {
namespace {

// The first steps of acfa_weight: the sums of z over the pixels of each block.
template <typename T, int kMmaM>
__global__ void __launch_bounds__(kSafemThreads, 2) sample_sums_kernel(SafemCall<T> p) {
  GPU_DYNAMIC_SHARED(unsigned char, shared);
  const SafemTile tile(p);
  float* samples = reinterpret_cast<float*>(shared);
  compute_samples<T, kMmaM>(p, tile, shared, [&](int own, int c, const float (&z)[kSafemPacket]) {
#pragma unroll
    for (int v = 0; v < kSafemPacket; ++v) samples[own * result_pitch(p.C) + c + v] = z[v];
  });
  __syncthreads();
  // Sum over the pixels
  const int count = min(p.own_pixels, p.pixels - tile.first - tile.own);
  float* sums = p.sums + ((int64_t(tile.n) * p.tiles.divisor + tile.tile) * tile.size + tile.rank) * p.C;
  for (int c = int(threadIdx.x); c < p.C; c += kSafemThreads) {
    float sum = 0;
    for (int own = 0; own < count; ++own) sum += samples[own * result_pitch(p.C) + c];
    sums[c] = sum;
  }
}

// Calls write(row, sum) for the product of each row of a packed weight [N, K] with a vector in shared memory, which has
// zeros from K up to the next multiple of 32. A warp multiplies 8 rows at a time, in the order of the MMA fragments.
template <typename T, typename Write>
GPU_DEVICE void multiply_vector(const float* vector, int K, const T* weight, int N, const Write& write) {
  const int lane_idx = int(threadIdx.x) % 32, warp_idx = int(threadIdx.x) / 32, group_id = lane_idx / 4;
  const int k_blocks = round_up(K, kBlockK) / kBlockK, tiles = round_up(N, kChunkColumns) / 8;
  for (int tile = warp_idx; tile < tiles; tile += kSafemWarps) {
    float sum = 0;
#pragma unroll 4
    for (int k = 0; k < k_blocks; ++k) {
      const T* from = weight + (int64_t(tile) * k_blocks + k) * 256 + lane_idx * kSafemPacket;
      const auto values = gpu::to_compute(gpu::load<kSafemPacket>(from));
#pragma unroll
      for (int v = 0; v < kSafemPacket; ++v) sum += values.values[v] * vector[k * kBlockK + lane_idx % 4 * 8 + v];
    }
    sum = gpu::sum_lanes<4>(sum);
    const int row = tile / 2 * kChunkColumns + group_id / 2 * 4 + tile % 2 * 2 + group_id % 2;
    if (lane_idx % 4 == 0 && row < N) write(row, sum);
  }
}

// The last steps of acfa_weight, from the sums of `parts` blocks per image, [N, parts, C]: weight [N, C]. One block
// computes an image.
template <typename T>
__global__ void __launch_bounds__(kSafemThreads)
    channel_weight_kernel(PackedSafem<T> packed, const float* sums, int parts, int C, float pixels, T* weight) {
  constexpr int kSize = 4;  // channels of a thread
  GPU_DYNAMIC_SHARED(float, shared);
  const int K = round_up(C, kBlockK), lanes = C / kSize, groups = max(1, kSafemThreads / lanes);
  float *mean = shared, *hidden = shared + K, *partial = hidden + 2 * C;  // [K], [2 * C], [groups, C]
  // Sum the blocks of the image, in a fixed order
  for (int work = int(threadIdx.x); work < groups * lanes; work += kSafemThreads) {
    const int group = work / lanes, c = (work - group * lanes) * kSize;
    float sum[kSize] = {};
#pragma unroll 8
    for (int part = group; part < parts; part += groups) {
      const auto values = gpu::load<kSize>(sums + (int64_t(blockIdx.x) * parts + part) * C + c);
#pragma unroll
      for (int v = 0; v < kSize; ++v) sum[v] += values.values[v];
    }
#pragma unroll
    for (int v = 0; v < kSize; ++v) partial[group * C + c + v] = sum[v];
  }
  __syncthreads();
  for (int c = int(threadIdx.x); c < K; c += kSafemThreads) {
    float sum = 0;
    for (int group = 0; c < C && group < groups; ++group) sum += partial[group * C + c];
    mean[c] = sum / pixels;
  }
  __syncthreads();
  // Expand, apply GELU, reduce, and apply the sigmoid
  multiply_vector(mean, C, packed.expand, 2 * C, [&](int row, float sum) {
    hidden[row] = gelu(sum + gpu::to_compute(packed.expand_bias[row]));
  });
  __syncthreads();
  multiply_vector(hidden, 2 * C, packed.reduce, C, [&](int row, float sum) {
    const float logit = sum + gpu::to_compute(packed.reduce_bias[row]);
    weight[int64_t(blockIdx.x) * C + row] =
        gpu::from_compute<T>(gpu::fast_reciprocal(1.0f + gpu::exponential<T>(-logit)));
  });
}

}  // namespace
}  // namespace danet
