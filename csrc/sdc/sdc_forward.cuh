// The forward pass of SDC (sdc.h) on CUDA devices. Each thread block prepares the taps of its items (an item is one
// group of channels of one output pixel, see sdc_taps.cuh), then gathers and sums their channels. deform_im2col has a
// kernel of its own, which does not sum over the taps.
#pragma once

#include "sdc_taps.cuh"

namespace danet {
namespace {

// The items of the blocks: groups_per_block groups of a tile of tile_h x tile_w output pixels, tile_w = 2^log2_tile_w.
// is_flat: all pixels of an image count as one row, which wastes no threads in small images.
struct ForwardTiles {
  int32_t tile_h, log2_tile_w, tiles_x, tiles_y, H, W;  // H, W: of the output, or 1 and H_out * W_out
  bool is_flat;
  gpu::Divisor groups_per_block, tiles_x_divisor, tiles_y_divisor, group_blocks_divisor, out_width;

  ForwardTiles(const SdcParams& p, int max_items)
      : tile_h(1), log2_tile_w(0), H(int32_t(p.H_out)), W(int32_t(p.W_out)), is_flat(false),
        groups_per_block(p.G < max_items ? p.G : max_items), tiles_x_divisor(1), tiles_y_divisor(1),
        group_blocks_divisor((p.G + groups_per_block.divisor - 1) / groups_per_block.divisor), out_width(p.W_out) {
    const int pixels = max_items / int(groups_per_block.divisor);
    while (2 * (tile_h << log2_tile_w) <= pixels) (1 << log2_tile_w) <= tile_h ? ++log2_tile_w : (tile_h *= 2, 0);
    count_tiles();
    const int64_t covered = int64_t(tiles_x) * tiles_y * (tile_h << log2_tile_w);
    if (10 * covered > 11 * p.H_out * p.W_out) {
      is_flat = true, W *= H, H = 1;
      while (tile_h > 1) tile_h /= 2, ++log2_tile_w;
      count_tiles();
    }
    tiles_x_divisor = gpu::Divisor(tiles_x), tiles_y_divisor = gpu::Divisor(tiles_y);
  }
  int items_per_block() const { return (tile_h << log2_tile_w) * int(groups_per_block.divisor); }
  int64_t num_blocks(int64_t N) const { return N * tiles_x * tiles_y * group_blocks_divisor.divisor; }

 private:
  void count_tiles() { tiles_x = (W + (1 << log2_tile_w) - 1) >> log2_tile_w, tiles_y = (H + tile_h - 1) / tile_h; }
};

// Shared memory per tap in bytes: CornerWeights, the offset of its cell, and the corners inside the image.
template <typename A>
constexpr int kForwardBytesPerTap = int(sizeof(CornerWeights<A>) + sizeof(int32_t) + sizeof(uint8_t));

// Computes out [num_items, group_channels]: the sums over the taps. Each thread computes kPackets packets (16 bytes) of
// channels, one work item after the other: it reads 4 * K packets of input for each packet of out. kPacketSize is the
// number of channels of a packet. Each item reads 3 * K values of offset and mask once. Items whose corners all lie
// inside the image (the common case) take a fast path without bounds checks.
// benchmarks/gpu_model predicts the time from the compiled code: docs/performance_model.md. Not yet measured on a GPU.
// NOTE: float32 is limited by the L1 cache. Two packets per thread halve its reads of shared memory.
template <typename T, typename Index, int kPacketSize, int kTaps, bool kXFirst>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 6 : 8) forward_kernel(
    SdcParams p, SamplingGrid<Compute<T>> sampling, ForwardTiles tiles, ImageView input /* [N, H*W, C] */,
    ImageView offset /* [N, H_out*W_out, G, K, 2] */, ImageView mask /* [N, H_out*W_out, G, K] */,
    T* __restrict__ out /* [num_items, group_channels] */, int group_channels, gpu::Divisor threads_per_item) {
  using A = Compute<T>;
  constexpr int kPackets = sizeof(T) == 4 && kPacketSize > 1 && kTaps > 0 ? 2 : 1;
  const int K = kTaps > 0 ? kTaps : sampling.K, packets = group_channels / kPacketSize;
  const int block_groups = int(tiles.groups_per_block.divisor),
            items = (tiles.tile_h << tiles.log2_tile_w) * block_groups;
  GPU_DYNAMIC_SHARED(CornerWeights<A>, corner_weights);  // [items, K]
  // [items]: the item's element offset in input, or ~offset (< 0) if a corner of the item lies outside the image
  int64_t* bases = reinterpret_cast<int64_t*>(corner_weights + items * K);
  int64_t* outputs = bases + items;                              // [items]: the item's number, < 0: none
  int32_t* cells = reinterpret_cast<int32_t*>(outputs + items);  // [items, K]: y * W + x of the top left corner
  uint8_t* corners_inside = reinterpret_cast<uint8_t*>(cells + items * K);  // [items, K], if a corner lies outside
  const Index stride = Index(input.pixel_stride);

  // Prepare the taps, one item per thread.
  const int tile = tiles.group_blocks_divisor.divide(int(blockIdx.x)), tile_row = tiles.tiles_x_divisor.divide(tile);
  const int n = tiles.tiles_y_divisor.divide(tile_row);
  const int tile_x = tile - tile_row * tiles.tiles_x, tile_y = tile_row - n * tiles.tiles_y;
  const int first_group = (int(blockIdx.x) - tile * int(tiles.group_blocks_divisor.divisor)) * block_groups;
  if (const int item = int(threadIdx.x); item < items) {
    const int local = tiles.groups_per_block.divide(item), g = item - local * block_groups + first_group;
    int y = tile_y * tiles.tile_h + (local >> tiles.log2_tile_w);
    int x = (tile_x << tiles.log2_tile_w) + (local & ((1 << tiles.log2_tile_w) - 1));
    const bool exists = y < tiles.H && x < tiles.W && g < int(p.G);
    const int i = y * tiles.W + x;
    if (tiles.is_flat) y = tiles.out_width.divide(i), x = i - y * int(tiles.out_width.divisor);
    outputs[item] = exists ? (Index(n) * (tiles.H * tiles.W) + i) * Index(p.G) + g : -1;
    if (exists) {
      const int64_t base = n * input.image_stride + int64_t(g) * group_channels;
      const T* item_offset = offset.pixel<const T>(n, i) + g * p.offset_group_stride;
      const T* item_mask = mask.pixel<const T>(n, i) + g * p.mask_group_stride;
      uint32_t last_row = 0, last_column = 0;  // as unsigned integers, negative indices are large
      bool any_nan = false;
      prepare_taps<kTaps, kXFirst>(sampling, item_offset, item_mask, y, x, [&](int k, const Sample<A>& sample, A m) {
        if (sample.is_nan) m = A(NAN);  // makes the sum NaN: NaN times any value of the corners, also 0, is NaN
        bilinear(sample.fraction_y, sample.fraction_x, m, corner_weights[item * K + k].weight);
        const uint32_t row = uint32_t(sample.row), column = uint32_t(sample.column);
        cells[item * K + k] = int32_t(row * uint32_t(sampling.W) + column);
        last_row = max(last_row, row), last_column = max(last_column, column);
        any_nan |= sample.is_nan;
      });
      const bool all_inside = last_row < uint32_t(sampling.H - 1) && last_column < uint32_t(sampling.W - 1) && !any_nan;
      bases[item] = all_inside ? base : ~base;
      // Rare: replace the cells of corners outside the image. A second pass keeps this off the fast path.
      if (!all_inside)
        prepare_taps</*kTaps=*/0, false>(
            sampling, item_offset, item_mask, y, x, [&](int k, const Sample<A>& sample, A) {
              const SampledCell cell = sample.cell;
              cells[item * K + k] = cell.top_left;
              corners_inside[item * K + k] = uint8_t(cell.corners_inside);
            });
    }
  }
  __syncthreads();

  const Index row_stride = Index(p.W) * stride, step[4] = {0, stride, row_stride, row_stride + stride};
  // Compute the outputs, kPackets packets of channels per thread.
  for (int work = int(threadIdx.x); work < items * int(threads_per_item.divisor); work += kThreads) {
    const int item = threads_per_item.divide(work), packet = work - item * int(threads_per_item.divisor);
    const int64_t output = outputs[item], base = bases[item];
    if (output < 0) continue;
    // The packets of a thread are threads_per_item packets apart, so that lanes read neighboring packets. A packet
    // past the last one is computed as a copy of the first, and not written.
    const bool has_second = packet + int(threads_per_item.divisor) < packets;
    const int distance = kPackets > 1 && has_second ? int(threads_per_item.divisor) * kPacketSize : 0;
    const T* corners[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner)
      corners[corner] =
          static_cast<const T*>(input.data) + (base < 0 ? ~base : base) + packet * kPacketSize + step[corner];
    A total[kPackets][kPacketSize] = {};
    const auto add_taps = [&](auto all_inside) {
#pragma unroll(kTaps > 0 && all_inside.value ? 3 : 1)
      for (int k = 0; k < K; ++k) {
        // Load the four corners, and add them times their weights.
        const CornerWeights<A> weights = corner_weights[item * K + k];
        const int32_t cell = cells[item * K + k];
        uint32_t inside = kAllCorners;
        if constexpr (!all_inside.value) inside = corners_inside[item * K + k];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const T* address;
          if constexpr (sizeof(Index) == 4)
            address = gpu::strided_address(corners[corner], cell, stride * int(sizeof(T)));
          else
            address = corners[corner] + cell * stride;
#pragma unroll
          for (int i = 0; i < kPackets; ++i) {
            const bool is_inside = all_inside.value || (inside >> corner & 1);
            const auto x = gpu::to_compute(gpu::load<kPacketSize>(address + i * distance, is_inside));
#pragma unroll
            for (int v = 0; v < kPacketSize; ++v) total[i][v] += weights.weight[corner] * x.values[v];
          }
        }
      }
    };
    if (base < 0)
      add_taps(std::false_type{});
    else
      add_taps(std::true_type{});
    // Round and write back.
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      gpu::AlignedArray<T, kPacketSize> result;
#pragma unroll
      for (int v = 0; v < kPacketSize; ++v) result.values[v] = gpu::from_compute<T>(total[i][v]);
      if (i == 0 || has_second)
        *reinterpret_cast<gpu::AlignedArray<T, kPacketSize>*>(
            out + output * group_channels + packet * kPacketSize + i * distance) = result;
    }
  }
}

// Computes out [N, H_out*W_out, K, C] of deform_im2col: every sample, times m. Each thread computes packets of channels
// of one tap. Device memory limits it: it writes K * C values per pixel.
// Not yet measured on a GPU. One block per multiprocessor is named as the minimum, because nvcc otherwise spills registers
// of the float64 kernel for sm_100 and sm_120.
template <typename T, int kPacketSize>
__global__ void __launch_bounds__(kThreads, 1) im2col_kernel(
    SdcParams p, SamplingGrid<Compute<T>> sampling, ImageView input /* [N, H*W, C] */,
    ImageView offset /* [N, H_out*W_out, G, K, 2] */, ImageView mask /* [N, H_out*W_out, G, K] */, ImageView out,
    int64_t num_items, int items_per_block) {
  using A = Compute<T>;
  const int K = int(p.K), group_channels = int(p.C / p.G), packets = group_channels / kPacketSize;
  const int64_t first = int64_t(blockIdx.x) * items_per_block;
  const int count = int(num_items - first < items_per_block ? num_items - first : items_per_block);
  GPU_DYNAMIC_SHARED(CornerWeights<A>, corner_weights);                                       // [items_per_block, K]
  SampledCell* cells = reinterpret_cast<SampledCell*>(corner_weights + items_per_block * K);  // [items_per_block, K]

  // Prepare the taps, one item per thread.
  if (const int item = int(threadIdx.x); item < count) {
    const OutputItem<int64_t> output(p, first + item);
    prepare_taps</*kTaps=*/0, /*kXFirst=*/false>(
        sampling, offset.pixel<const T>(output.n, output.i) + output.g * p.offset_group_stride,
        mask.pixel<const T>(output.n, output.i) + output.g * p.mask_group_stride, output.y, output.x,
        [&](int k, const Sample<A>& sample, A m) {
          if (sample.is_nan) m = A(NAN);  // NaN times any value of the corners, also 0, is NaN
          bilinear(sample.fraction_y, sample.fraction_x, m, corner_weights[item * K + k].weight);
          cells[item * K + k] = sample.cell;
        });
  }
  __syncthreads();

  for (int work_index = int(threadIdx.x); work_index < count * K * packets; work_index += kThreads) {
    const int tap = work_index / packets, packet = work_index - tap * packets, item = tap / K;
    const OutputItem<int64_t> output(p, first + item);
    const int64_t channel = output.g * group_channels + packet * kPacketSize;
    const SampledCell cell = cells[tap];
    const T* top_left = input.pixel<const T>(output.n, cell.top_left) + channel;
    // Load the four corners, and add them times their weights.
    A total[kPacketSize] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const auto x = gpu::to_compute(
          gpu::load<kPacketSize>(
              top_left + (corner / 2 * p.W + corner % 2) * input.pixel_stride, cell.corners_inside >> corner & 1));
#pragma unroll
      for (int v = 0; v < kPacketSize; ++v) total[v] += corner_weights[tap].weight[corner] * x.values[v];
    }
    // Round and write back.
    gpu::AlignedArray<T, kPacketSize> result;
#pragma unroll
    for (int v = 0; v < kPacketSize; ++v) result.values[v] = gpu::from_compute<T>(total[v]);
    *reinterpret_cast<gpu::AlignedArray<T, kPacketSize>*>(
        out.pixel<T>(output.n, output.i) + (tap - item * K) * p.tap_stride + channel) = result;
  }
}

}  // namespace
}  // namespace danet
