// The parameters of the implicit GEMM of rep_conv (rep_conv_gemm.cuh), its tile, and the copies from global to shared
// memory.
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
  // [num_splits, batch, H_out, W_out, C_out]: sums over parts of K; null if num_splits is 1, and if the blocks of a
  // cluster are the splits of a tile
  Compute<T>* partial;
  // The kernels compute offsets in the input and in the weight in 32 bits; see has_small_indices in rep_conv_cuda.cu.
  int image_stride, pixel_stride;
  int64_t pixels;                                              // batch * H_out * W_out
  int C, C_out, H, W, H_out, W_out, stride, taps, num_splits;  // taps: 9, or 1 for a 1x1 kernel
  bool relu;
  // For a float32 weight and an input of a half type, each channel of the weight is the sum of two rows of `weight`:
  // its values rounded to T, and the rounding errors. The result is float32, [batch, H_out, W_out, C_out / 2], and so
  // is the bias, [C_out / 2]. split_out is null if the weight has the type T. Only tiles of 64 pixels support this.
  const float* split_bias;
  float* split_out;
  // Division of indices by the pixels of an output image, the pixels of an output row, the input channels, and the
  // blocks of output channels
  gpu::Divisor by_image, by_row, by_channels, by_channel_blocks;
  // Division of the block index: by the splits if they are the blocks of a cluster, else by the tiles
  gpu::Divisor by_splits;
  // Blocks of K. Each split has split_k_blocks of them, and the first ones have one more.
  int k_blocks, split_k_blocks;
};

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
// of the taps inside the input. Bit 3 * i + j is the tap in row i and column j of the window. The only tap of a 1x1
// kernel is tap 0.
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

}  // namespace
}  // namespace danet
