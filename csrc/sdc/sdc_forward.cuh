// The forward pass of SDC (sdc.h) on CUDA devices. Each thread block prepares the taps of its items (an item is one
// group of channels of one output pixel, see sdc_taps.cuh), then gathers and sums their channels. deform_im2col has a
// kernel of its own, which does not sum over the taps.
#pragma once

#include <algorithm>

#include "sdc_taps.cuh"

namespace danet {
namespace {

// The items of the blocks: groups_per_block groups of a tile of tile_h x tile_w output pixels, tile_w = 2^log2_tile_w.
// is_flat: all pixels of an image count as one row, which wastes no threads in small images.
struct ForwardTiles {
  int32_t tile_h, log2_tile_w, tiles_x, tiles_y, H, W;  // H, W: of the output, or 1 and H_out * W_out
  bool is_flat;
  gpu::Divisor groups_per_block, tiles_x_divisor, tiles_y_divisor, group_blocks_divisor, out_width;

  ForwardTiles(const SdcParams& p, int max_items, int64_t group_bytes)
      : tile_h(1), log2_tile_w(0), H(int32_t(p.H_out)), W(int32_t(p.W_out)), is_flat(false),
        groups_per_block(choose_groups(p, max_items, group_bytes)), tiles_x_divisor(1), tiles_y_divisor(1),
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
  // Few groups leave more of the items for pixels, and neighboring pixels share their input. Takes at least four groups,
  // or as many as fill two sectors of 32 bytes: the smallest such divisor of G, so that all blocks are full.
  static int64_t choose_groups(const SdcParams& p, int max_items, int64_t group_bytes) {
    int64_t groups = std::min<int64_t>(p.G, std::max<int64_t>(4, 64 / group_bytes));
    while (p.G % groups != 0) ++groups;
    return std::min<int64_t>(groups, max_items);
  }
  void count_tiles() { tiles_x = (W + (1 << log2_tile_w) - 1) >> log2_tile_w, tiles_y = (H + tile_h - 1) / tile_h; }
};

// Where an item lies in its image of out.
struct OutputPlace {
  int32_t pixel;    // y * W_out + x, or -1 if the item does not exist
  int32_t channel;  // the first of its group
};

// Shared memory per tap (CornerWeights and the place of the cell) and per item, in bytes.
template <typename A>
constexpr int kForwardBytesPerTap = int(sizeof(CornerWeights<A>) + sizeof(int32_t));
constexpr int kForwardBytesPerItem = int(sizeof(OutputPlace));

// Linear interpolation along one axis of the image, between index `first` and the next one.
template <typename A>
struct AxisWeights {
  int32_t first;
  A weight[2];

  // `first` is clamped, so that both indices lie in the image and can be read without a check. The weight of an index is
  // max(0, 1 - its distance from position): an index that is not next to the position gets zero. If size is 1, only the
  // first index has a weight. NaN gives zeros.
  GPU_DEVICE AxisWeights(A position, int32_t size) {
    const A second = size > 1 ? A(1) : A(INFINITY);
    first = int32_t(min(gpu::floor_to_unsigned(position), uint32_t(max(size - 2, 0))));
    const A distance = position - A(first);
    weight[0] = gpu::saturate(1 - std::abs(distance)), weight[1] = gpu::saturate(1 - std::abs(second - distance));
  }
};

// The number of float32 blocks that must fit into a multiprocessor, and thus share its registers: as many as nvcc compiles
// without spilling registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 == 10
constexpr int kFloatBlocks = 7;
#else
constexpr int kFloatBlocks = 8;
#endif

// Computes out [N, H_out*W_out, C]: the sums over the taps. Each thread computes kPackets packets (16 bytes) of channels,
// one work item after the other: it reads 4 * K packets of input for each packet of out. kPacketSize is the number of
// channels of a packet. Each item reads 3 * K values of offset and mask once.
// benchmarks/gpu_model predicts the time from the compiled code: docs/performance_model.md. Not yet measured on a GPU.
// NOTE: float32 is limited by the L1 cache. Two packets per thread halve its reads of shared memory. The loop over the
// taps is not unrolled in float32, because nvcc would spill registers for sm_90 and sm_120.
template <typename T, typename Index, int kPacketSize, int kTaps, bool kXFirst>
__global__ void __launch_bounds__(
    kThreads, sizeof(T) == 8   ? 6
              : sizeof(T) == 4 ? kFloatBlocks
                               : 8)
    forward_kernel(
        SdcParams p, SamplingGrid<Compute<T>> sampling, ForwardTiles tiles, ImageView input /* [N, H*W, C] */,
        ImageView offset /* [N, H_out*W_out, G, K, 2] */, ImageView mask /* [N, H_out*W_out, G, K] */,
        T* __restrict__ out /* [N, H_out*W_out, C] */, int group_channels, gpu::Divisor threads_per_item) {
  using A = Compute<T>;
  constexpr int kPackets = sizeof(T) == 4 && kPacketSize > 1 && kTaps > 0 ? 2 : 1;
  const int K = kTaps > 0 ? kTaps : sampling.K, packets = group_channels / kPacketSize;
  const int block_groups = int(tiles.groups_per_block.divisor),
            items = (tiles.tile_h << tiles.log2_tile_w) * block_groups;
  GPU_DYNAMIC_SHARED(CornerWeights<A>, corner_weights);  // [items, K]
  // [items, K]: the pixel y * W + x of the top left corner, or its offset in the image in bytes if Index is int32_t
  uint32_t* cells = reinterpret_cast<uint32_t*>(corner_weights + items * K);
  OutputPlace* places = reinterpret_cast<OutputPlace*>(cells + items * K);  // [items]
  const uint32_t cell_scale = sizeof(Index) == 4 ? uint32_t(input.pixel_stride) * uint32_t(sizeof(T)) : 1;

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
    places[item] = {exists ? i : -1, g * group_channels};
    bool any_nan = false;
    if (exists)
      prepare_taps<kTaps, kXFirst, /*kInPairs=*/true>(
          sampling, offset.pixel<const T>(n, 0) + (i * Index(offset.pixel_stride) + g * Index(p.offset_group_stride)),
          mask.pixel<const T>(n, 0) + (i * Index(mask.pixel_stride) + g * Index(p.mask_group_stride)), y, x,
          [&](int k, const Sample<A>& sample, A m) {
            any_nan |= sample.is_nan;
            if (k == K - 1 && any_nan) m = A(NAN);  // makes the sum NaN: NaN times any weight or value, also 0, is NaN
            const AxisWeights<A> rows(sample.y, sampling.H), columns(sample.x, sampling.W);
            const A top = m * rows.weight[0], bottom = m * rows.weight[1];
            gpu::store_shared(
                corner_weights[item * K + k].weight, top * columns.weight[0], top * columns.weight[1],
                bottom * columns.weight[0], bottom * columns.weight[1]);
            cells[item * K + k] = uint32_t(rows.first * sampling.W + columns.first) * cell_scale;
          });
  }
  __syncthreads();

  const Index stride = Index(input.pixel_stride);
  const Index right = sampling.W > 1 ? stride : 0, below = sampling.H > 1 ? sampling.W * stride : 0;
  const T* image = gpu::opaque(input.pixel<const T>(n, 0));
  T* out_image = out + int64_t(n) * (tiles.H * tiles.W) * p.C;
  const int item_threads = int(threads_per_item.divisor);
  const int items_per_pass = threads_per_item.divide(kThreads),
            rest_per_pass = kThreads - items_per_pass * item_threads;
  // Visits the thread's packets: body(item, channel, distance, has_second). The packets of a thread are threads_per_item
  // packets (`distance` channels) apart, so that lanes read neighboring packets. A packet past the last one is computed
  // as a copy of the first, and not written.
  const auto for_packets = [&](const auto& body) {
    int item = threads_per_item.divide(int(threadIdx.x)), packet = int(threadIdx.x) - item * item_threads;
    const auto advance = [&] {  // kThreads packets further, without a division
      item += items_per_pass, packet += rest_per_pass;
      if (packet >= item_threads) packet -= item_threads, ++item;
    };
    for (; item < items; advance()) {
      if (places[item].pixel < 0) continue;
      const bool has_second = packet + item_threads < packets;
      const int distance = kPackets > 1 && has_second ? item_threads * kPacketSize : 0;
      body(item, places[item].channel + packet * kPacketSize, distance, has_second);
    }
  };
  // Rounds and writes `total`. Returns a value that is not zero if a result is not finite.
  const auto write = [&](int item, int channel, int distance, bool has_second, const A(&total)[kPackets][kPacketSize]) {
    A zero_or_nan = 0;
    T* result = out_image + (Index(places[item].pixel) * Index(p.C) + channel);
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      gpu::AlignedArray<T, kPacketSize> rounded;
#pragma unroll
      for (int v = 0; v < kPacketSize; ++v) {
        zero_or_nan += total[i][v] * A(0);
        rounded.values[v] = gpu::from_compute<T>(total[i][v]);
      }
      if (i == 0 || has_second) *reinterpret_cast<gpu::AlignedArray<T, kPacketSize>*>(result + i * distance) = rounded;
    }
    return zero_or_nan;
  };

  A zero_or_nan = 0;
  for_packets([&](int item, int channel, int distance, bool has_second) {
    const T* corners[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner)
      corners[corner] = gpu::opaque(image + channel + (corner % 2 * right + corner / 2 * below));
    A total[kPackets][kPacketSize] = {};
#pragma unroll(kTaps > 0 && kPackets == 1 ? kTaps : 1)
    for (int k = 0; k < K; ++k) {
      // Load the four corners, and add them times their weights.
      const CornerWeights<A> weights = corner_weights[item * K + k];
      const uint32_t cell = cells[item * K + k];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const T* address;
        if constexpr (sizeof(Index) == 4)
          address = reinterpret_cast<const T*>(reinterpret_cast<const char*>(corners[corner]) + cell);
        else
          address = corners[corner] + cell * stride;
#pragma unroll
        for (int i = 0; i < kPackets; ++i) {
          const auto x = gpu::to_compute(gpu::load<kPacketSize>(address + i * distance));
#pragma unroll
          for (int v = 0; v < kPacketSize; ++v) total[i][v] += weights.weight[corner] * x.values[v];
        }
      }
    }
    zero_or_nan += write(item, channel, distance, has_second, total);
  });
  // Rare: a result is not finite, perhaps because an infinite pixel has taken the place of a corner outside. Compute the
  // thread's results again from the offsets, and do not read corners outside.
  if (zero_or_nan != 0)
    for_packets([&](int item, int channel, int distance, bool has_second) {
      const int i = places[item].pixel, y = tiles.out_width.divide(i), x = i - y * int(tiles.out_width.divisor);
      const int g = places[item].channel / group_channels;
      A total[kPackets][kPacketSize] = {};
      prepare_taps</*kTaps=*/0, false>(
          sampling, offset.pixel<const T>(n, i) + g * p.offset_group_stride,
          mask.pixel<const T>(n, i) + g * p.mask_group_stride, y, x, [&](int, const Sample<A>& sample, A m) {
            A weights[4];
            bilinear(sample.fraction_y, sample.fraction_x, sample.is_nan ? A(NAN) : m, weights);
            const T* top_left = input.pixel<const T>(n, sample.cell.top_left) + channel;
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              const bool is_inside = sample.cell.corners_inside >> corner & 1;
              const T* address = top_left + (corner / 2 * p.W + corner % 2) * input.pixel_stride;
#pragma unroll
              for (int j = 0; j < kPackets; ++j) {
                const auto values = gpu::to_compute(gpu::load<kPacketSize>(address + j * distance, is_inside));
#pragma unroll
                for (int v = 0; v < kPacketSize; ++v) total[j][v] += weights[corner] * values.values[v];
              }
            }
          });
      write(item, channel, distance, has_second, total);
    });
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
