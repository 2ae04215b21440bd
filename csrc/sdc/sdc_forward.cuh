// The forward pass of SDC (sdc.h) on CUDA devices. Each thread block prepares the taps of its items (an item is one
// group of channels of one output pixel, see sdc_taps.cuh), then gathers and sums their channels. deform_im2col has a
// kernel of its own (sdc_im2col.cuh), which does not sum over the taps.
#pragma once

#include <utility>

#include "sdc_forward_plan.cuh"
#include "sdc_tap_table.cuh"

namespace danet {
namespace {

// Where an item lies in its image of out.
struct alignas(8) OutputPlace {
  int32_t pixel;    // y * W_out + x, or -1 if the item does not exist
  int32_t channel;  // the first of its group
};

// float32 is limited by the L1 cache, and has time for the arithmetic of PositionTable. The half types are limited by
// the L1 cache and the number of instructions, almost equally.
template <typename T>
using ForwardTapTable = std::conditional_t<std::is_same_v<T, float>, PositionTable, CellTable<Compute<T>>>;

// Starts the copy of a lane: 16 bytes of every 512 that a warp copies at once. bytes_left: from `from` to the end of
// the range. kSteps: the numbers of the steps, 0 to the last one.
template <int... kSteps>
GPU_DEVICE void warp_copy_async(char* to, const char* from, int bytes_left, std::integer_sequence<int, kSteps...>) {
  ((bytes_left > 512 * kSteps ? gpu::cp_async<16, 512 * kSteps>(to, from) : void()), ...);
}

// The number of float32 blocks that must fit into a multiprocessor, and thus share its registers: as many as nvcc
// compiles without spilling registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kFloatBlocks = 7;
#else
constexpr int kFloatBlocks = 8;
#endif

// The packets of channels that one thread computes at once.
template <typename T, int kPacketSize, int kTaps>
constexpr int kPacketsPerThread = sizeof(T) == 4 && kPacketSize > 1 && kTaps > 0 ? 2 : 1;

// How the threads of a block share the packets of its items: threads_per_item threads compute one item. In one pass,
// the block advances by kThreads = items_per_pass * threads_per_item + rest_per_pass threads' work.
struct PacketSchedule {
  int32_t per_item;  // packets
  gpu::Divisor threads_per_item;
  int32_t items_per_pass, rest_per_pass;

  PacketSchedule(int64_t packets, int per_thread)
      : per_item(int32_t(packets)), threads_per_item((packets + per_thread - 1) / per_thread),
        items_per_pass(int32_t(kThreads / threads_per_item.divisor)),
        rest_per_pass(int32_t(kThreads % threads_per_item.divisor)) {}
};

// Computes out [N, H_out*W_out, C]: the sums over the taps. A packet is a vector of kPacketSize neighboring channels:
// 16 bytes, or one channel in the general kernels. In each iteration, a thread computes kPackets packets of one item;
// for each of them it reads 4 * K packets of input. benchmarks/gpu_model predicts the time from the compiled code:
// docs/performance_model.md. Not yet measured on a GPU. The launch bounds are the most blocks per multiprocessor for
// which nvcc spills no registers.
// NOTE: float32 is limited by the L1 cache. Two packets per thread halve its reads of shared memory. Its loop over the
// taps is not unrolled, because nvcc would spill registers for sm_90 and sm_120.
template <typename T, typename Index, int kPacketSize, int kTaps, bool kXFirst>
__global__ void __launch_bounds__(
    kThreads, sizeof(T) == 8   ? 6
              : sizeof(T) == 4 ? kFloatBlocks
                               : 8)
    forward_kernel(
        SdcParams p, SamplingGrid<Compute<T>> sampling, ForwardTiles tiles, ForwardStrides strides, StagedRun staged,
        ImageView input /* [N, H*W, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
        ImageView mask /* [N, H_out*W_out, G, K] */, T* __restrict__ out /* [N, H_out*W_out, C] */,
        PacketSchedule packets) {
  using A = Compute<T>;
  constexpr int kPackets = kPacketsPerThread<T, kPacketSize, kTaps>;
  const int K = kTaps > 0 ? kTaps : sampling.K, group_channels = packets.per_item * kPacketSize;
  const int block_groups = int(tiles.groups_per_block.divisor),
            items = (tiles.tile_h << tiles.log2_tile_w) * block_groups;
  GPU_DYNAMIC_SHARED(OutputPlace, places);                       // [kMaxItems]
  const ForwardTapTable<T> taps(places + kMaxItems, items * K);  // [items, K]

  // Prepare the taps, one item per thread.
  const int tile = tiles.group_blocks_divisor.divide(int(blockIdx.x)), tile_row = tiles.tiles_x_divisor.divide(tile);
  const int n = tiles.tiles_y_divisor.divide(tile_row);
  const int tile_x = tile - tile_row * tiles.tiles_x, tile_y = tile_row - n * tiles.tiles_y;
  const int first_group = (int(blockIdx.x) - tile * int(tiles.group_blocks_divisor.divisor)) * block_groups;
  if (const int item = int(threadIdx.x); item < items) {
    // The order of the items: the pixel in its run changes fastest, then the group, then the run. Without staging, a
    // run is one pixel.
    const int in_run = item & ((1 << staged.log2_pixels) - 1), run_item = item >> staged.log2_pixels;
    const int run = tiles.groups_per_block.divide(run_item), g = run_item - run * block_groups + first_group;
    const int local = (run << staged.log2_pixels) + in_run;
    int y = tile_y * tiles.tile_h + (local >> tiles.log2_tile_w);
    int x = (tile_x << tiles.log2_tile_w) + (local & ((1 << tiles.log2_tile_w) - 1));
    const bool exists = y < tiles.rows && x < tiles.columns;
    const int i = y * tiles.columns + x;
    if (tiles.is_flat) y = tiles.out_width.divide(i), x = i - y * int(tiles.out_width.divisor);
    places[item] = {exists ? i : -1, g * group_channels};
    bool any_nan = false;
    const auto store = [&](int k, const Sample<A>& sample, A m) {
      any_nan |= sample.is_nan;
      if (k == K - 1 && any_nan) m = A(NAN);  // makes the sum NaN: NaN times any weight or value, also 0, is NaN
      taps.set(item * K + k, sample.y, sample.x, sampling.H, sampling.W, m);
    };
    const T* image_offset = offset.pixel<const T>(n, 0);
    const T* image_mask = mask.pixel<const T>(n, 0);
    const auto item_offset = [&] {
      return image_offset + (i * Index(offset.pixel_stride) + g * Index(p.offset_group_stride));
    };
    const auto item_mask = [&] { return image_mask + (i * Index(mask.pixel_stride) + g * Index(p.mask_group_stride)); };
    if constexpr (kTaps > 0) {
      ItemInputs<A> values;
      bool is_loaded = false;
      if constexpr (kCanStage<T, kTaps>)
        if (staged.bytes > 0 && __all_sync(~0u, exists)) {
          // Copy offset and mask of the run to where the warp's taps will be written. Then read those of the item.
          static_assert(kMaxStagedBytes<T> <= 32 * kTaps * int(sizeof(CornerWeights<A>)));
          void* copy = taps.memory((item & ~31) * K);
          const int lane_bytes = item % 32 * 16;
          const T* first = image_offset + (i - in_run) * Index(offset.pixel_stride);
          warp_copy_async(
              static_cast<char*>(copy) + lane_bytes, reinterpret_cast<const char*>(first) + lane_bytes,
              staged.bytes - lane_bytes, std::make_integer_sequence<int, kMaxStagedBytes<T> / 512>{});
          gpu::cp_async_commit();
          gpu::cp_async_wait<0>();
          __syncwarp();
          const T* pixel = static_cast<const T*>(copy) + in_run * int(offset.pixel_stride);
          values = load_item<kXFirst>(
              pixel + g * int(p.offset_group_stride), pixel + staged.mask_start + g * int(p.mask_group_stride));
          __syncwarp();
          is_loaded = true;
        }
      if (exists) {
        if (!is_loaded) values = load_item_in_pairs<kXFirst>(item_offset(), item_mask());
        prepare_nine_taps<kXFirst, T>(sampling, values, y, x, store);
      }
    } else if (exists) {
      prepare_taps<0, kXFirst>(sampling, item_offset(), item_mask(), y, x, store);
    }
  }
  __syncthreads();

  const T* image = gpu::opaque(input.pixel<const T>(0, 0) + uint32_t(n) * strides.input_image);
  T* out_image = out + uint32_t(n) * strides.out_image;
  const int item_threads = int(packets.threads_per_item.divisor);
  // Visits the thread's packets: body(item, pixel, channel, distance, has_second). The packets of a thread are
  // threads_per_item packets (`distance` channels) apart, so that lanes read neighboring packets. A packet past the
  // last one is computed as a copy of the first, and not written.
  const auto for_packets = [&](const auto& body) {
    int item = packets.threads_per_item.divide(int(threadIdx.x)), packet = int(threadIdx.x) - item * item_threads;
    const auto advance = [&] {  // kThreads packets further, without a division
      item += packets.items_per_pass, packet += packets.rest_per_pass;
      if (packet >= item_threads) packet -= item_threads, ++item;
    };
    for (; item < items; advance()) {
      const OutputPlace place = places[item];
      if (place.pixel < 0) continue;
      const bool has_second = packet + item_threads < packets.per_item;
      const int distance = kPackets > 1 && has_second ? item_threads * kPacketSize : 0;
      body(item, place.pixel, place.channel + packet * kPacketSize, distance, has_second);
    }
  };
  // Rounds and writes `total`, and checks whether the results are finite.
  gpu::FiniteCheck<T> check;
  const auto write = [&](int pixel, int channel, int distance, bool has_second,
                         const A(&total)[kPackets][kPacketSize]) {
    T* result = out_image + (Index(pixel) * Index(p.C) + channel);
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      gpu::AlignedArray<T, kPacketSize> rounded;
#pragma unroll
      for (int v = 0; v < kPacketSize; ++v) rounded.values[v] = gpu::from_compute<T>(total[i][v]);
      check.add(rounded);
      if (i == 0 || has_second) *reinterpret_cast<gpu::AlignedArray<T, kPacketSize>*>(result + i * distance) = rounded;
    }
  };

  for_packets([&](int item, int pixel, int channel, int distance, bool has_second) {
    const T* corners[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner)
      corners[corner] = gpu::opaque(
          reinterpret_cast<const T*>(reinterpret_cast<const char*>(image + channel) + strides.corner_bytes[corner]));
    A total[kPackets][kPacketSize] = {};
#pragma unroll(kTaps > 0 && kPackets == 1 ? kTaps : 1)
    for (int k = 0; k < K; ++k) {
      // Load the four corners, and add them times their weights.
      const WeightedCell<A> cell = taps.get(item * K + k, sampling.H, sampling.W);
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const T* address = gpu::element(corners[corner], cell.pixel, strides.pixel_bytes[corner]);
#pragma unroll
        for (int i = 0; i < kPackets; ++i) {
          const auto x = gpu::to_compute(gpu::load<kPacketSize>(address + i * distance));
#pragma unroll
          for (int v = 0; v < kPacketSize; ++v) total[i][v] += cell.weight[corner] * x.values[v];
        }
      }
    }
    write(pixel, channel, distance, has_second, total);
  });
  // Rare: a result is not finite. It may have overflowed in float16, or an infinite pixel has taken the place of a
  // corner outside (0 * inf is NaN). Compute the thread's results again from the offsets, and do not read corners
  // outside.
  if (!check.all_finite())
    for_packets([&](int item, int pixel, int channel, int distance, bool has_second) {
      const int y = tiles.out_width.divide(pixel), x = pixel - y * int(tiles.out_width.divisor);
      const int g = places[item].channel / group_channels;
      A total[kPackets][kPacketSize] = {};
      prepare_taps</*kTaps=*/0, false>(
          sampling, offset.pixel<const T>(n, pixel) + g * p.offset_group_stride,
          mask.pixel<const T>(n, pixel) + g * p.mask_group_stride, y, x, [&](int, const Sample<A>& sample, A m) {
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
      write(pixel, channel, distance, has_second, total);
    });
}

}  // namespace
}  // namespace danet
