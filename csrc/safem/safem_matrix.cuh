// The 1x1 convolutions of SaFEM on CUDA devices: products of a few rows in shared memory (one for each pixel of a tile)
// with a weight in global memory, on the tensor cores.
//
// The weight is packed as MMA fragments: the 16 bytes that a lane needs are contiguous, and so are those of a warp.
// Each weight is therefore loaded once per block, directly into registers. danet/ops/fused_safem.py packs it: with N
// rows rounded up to 16, K columns rounded up to 32, and zeros as padding,
//
//   packed[chunk, n, k_block, t, j, u, e] = weight[16 * chunk + 4 * t + 2 * n + j, 32 * k_block + 8 * u + e],
//   n, j < 2,   t, u < 4,   e < 8
//
// t and j make a lane's four output channels contiguous: an MMA gives it columns 2 t and 2 t + 1 of every 8, with t =
// lane % 4. u and e order K so that a lane's operands for two MMAs are contiguous, in the weight and in the rows alike:
// a sum does not depend on the order of its terms.
#pragma once

#include "../common/ptx.cuh"

namespace danet {
namespace {

constexpr int kSafemThreads = 256, kSafemWarps = kSafemThreads / 32;
constexpr int kChunkColumns = 16;  // output channels that a warp computes at a time
constexpr int kBlockK = 32;        // of the K dimension, the part that one load of a lane covers for its warp

// The next multiple of a power of two.
DANET_HOST_DEVICE int round_up(int value, int multiple) { return (value + multiple - 1) & ~(multiple - 1); }

// Elements from one row of the left operand to the next, for K columns of 16-bit types. An odd multiple of 64 bytes, so
// that loads of 16 bytes from two rows are in different banks.
DANET_HOST_DEVICE int operand_pitch(int K) { return round_up(K, kBlockK) | kBlockK; }
// The same for results in float32: an odd multiple of 64 bytes.
DANET_HOST_DEVICE int result_pitch(int N) { return round_up(N, kChunkColumns) | kChunkColumns; }

// accum += rows * weight for 16 * kMmaM rows and one chunk of 16 columns. `fragments` are those of the chunk.
// NOTE: the loads of kUnroll parts of K are started before their products, because the latency of the L2 cache is the
// bottleneck.
template <typename T, int kMmaM>
GPU_DEVICE void multiply_chunk(
    float (&accum)[kMmaM][2][4], const T* rows, int pitch, const gpu::AlignedArray<uint32_t, 4>* fragments,
    int k_blocks) {
  constexpr int kUnroll = kMmaM == 1 ? 8 : 4;
  using Words = gpu::AlignedArray<uint32_t, 4>;
  const int lane_idx = int(threadIdx.x) % 32;
  const T* row = rows + lane_idx / 4 * pitch + lane_idx % 4 * 8;
  fragments += lane_idx;
  for (int first = 0; first < k_blocks; first += kUnroll) {
    // Load the fragments of the weight
    Words b[kUnroll][2];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        b[k][n] = gpu::load<4>(
            reinterpret_cast<const uint32_t*>(fragments + (n * k_blocks + first + k) * 32), first + k < k_blocks);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (first + k >= k_blocks) break;
#pragma unroll
      for (int m = 0; m < kMmaM; ++m) {
        // Load two rows, and multiply
        const T* from = row + m * 16 * pitch + (first + k) * kBlockK;
        const Words low = *reinterpret_cast<const Words*>(from);
        const Words high = *reinterpret_cast<const Words*>(from + 8 * pitch);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const uint32_t a[4] = {low.values[i], high.values[i], low.values[i + 1], high.values[i + 1]};
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const uint32_t operand[2] = {b[k][n].values[i], b[k][n].values[i + 1]};
            gpu::mma_m16n8k16<T>(accum[m][n], a, operand);
          }
        }
      }
    }
  }
}

// Multiplies 16 * kMmaM rows [pitch], of which the first K columns count, by a packed weight [N, K] and adds the bias.
// Calls write(row, column, values) for four successive columns of a row; columns from N on are zero. The blocks of a
// cluster share the columns: this block is `rank` of `size`.
template <typename T, int kMmaM, typename Write>
GPU_DEVICE void multiply_rows(
    const T* rows, int K, const T* weight, const T* bias, int N, int rank, int size, const Write& write) {
  using Words = gpu::AlignedArray<uint32_t, 4>;
  const int lane_idx = int(threadIdx.x) % 32, warp_idx = int(threadIdx.x) / 32;
  const int k_blocks = round_up(K, kBlockK) / kBlockK, chunks = round_up(N, kChunkColumns) / kChunkColumns;
  for (int chunk = warp_idx * size + rank; chunk < chunks; chunk += kSafemWarps * size) {
    const int column = chunk * kChunkColumns + lane_idx % 4 * 4;
    const auto added = gpu::to_compute(gpu::load<4>(bias + column));
    float accum[kMmaM][2][4] = {};
    multiply_chunk<T, kMmaM>(
        accum, rows, operand_pitch(K), reinterpret_cast<const Words*>(weight) + chunk * 2 * k_blocks * 32, k_blocks);
#pragma unroll
    for (int m = 0; m < 2 * kMmaM; ++m) {
      gpu::AlignedArray<float, 4> values;
#pragma unroll
      for (int i = 0; i < 4; ++i) values.values[i] = accum[m / 2][i / 2][m % 2 * 2 + i % 2] + added.values[i];
      write(m * 8 + lane_idx / 4, column, values);
    }
  }
}

// gelu(x) = x * Phi(x), with Phi the cumulative normal distribution. Its tail is approximated to 1e-7 by formula 7.1.26
// of Abramowitz and Stegun, Handbook of Mathematical Functions.
GPU_DEVICE float gelu(float x) {
  const float z = fabsf(x) * 0.70710678f, t = gpu::fast_reciprocal(1.0f + 0.3275911f * z);
  float tail = t * 0.5307027145f - 0.7265760135f;
  tail = tail * t + 0.7107068705f;
  tail = tail * t - 0.142248368f;
  tail = tail * t + 0.127414796f;
  tail = tail * t * gpu::fast_exp2(z * z * -1.44269504f);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace
}  // namespace danet
