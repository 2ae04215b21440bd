// The forward pass of SDC (sdc.h) on CUDA devices. Each thread block prepares the taps of its items (an item is one
// group of channels of one output pixel, see sdc_taps.cuh), then gathers and sums their channels.
#pragma once

#include "sdc_taps.cuh"

namespace danet {
namespace {

// Computes out [num_items, group_channels]: the sums over the taps. Each thread computes packets (16 bytes) of
// channels, one after the other: for a packet, it reads 4 * K packets of input and writes one packet of out.
// kPacketSize is the number of channels of a packet. Each item reads 3 * K values of offset and mask once. Shared
// memory holds, per item, K taps of 24 bytes (float). Items whose corners all lie inside the image (the common case)
// take a fast path without bounds checks.
// Roofline, computed for N = 8, C = 64, 128x160 pixels, G = 4 and K = 9 (0.9 GFLOP) on an H200. Its device memory moves
// 4.3 TB/s. Its 132 multiprocessors run at 1.83 GHz. Per cycle, each multiprocessor reads 128 bytes from its L1 cache
// and issues instructions for 128 lanes. In one second, all multiprocessors together read 31e12 bytes and execute 31e12
// lane instructions (instructions times lanes). The instructions are counted in the code that nvcc 13.0 compiles for
// sm_90, along the fast path. They are divided by the 8 (bfloat16) or 4 (float32) channels of a packet and the 16
// channels of an item.
//   bfloat16: Device memory moves 77 MB in 18 us. The L1 caches deliver 0.75 GB in 24 us. A lane issues 741
//   instructions for the 9 taps of a packet (64 per tap are products and conversions), 119 more per packet, and 634 per
//   item: (741 + 119) / 8 + 634 / 16 = 147 per output element, which take 50 us. Instruction issue is the bottleneck.
//   At its full rate the kernel would reach 36 % of the copy bandwidth; we expect 35 %.
//   float32: Device memory moves 155 MB in 36 us. The L1 caches deliver 1.5 GB in 49 us. A lane issues 313 instructions
//   for the 9 taps of a packet, 86 more per packet, and 665 per item: (313 + 86) / 4 + 665 / 16 = 141 per output
//   element, which take 48 us. The L1 cache is the bottleneck, closely followed by instruction issue. At its full rate
//   the kernel would reach 73 % of the copy bandwidth; we expect 55 %.
// Not yet measured on a GPU.
template <typename T, typename Index, int kPacketSize, int kTaps, bool kXFirst>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 6 : 8) forward_kernel(
    SdcParams p, ImageView input /* [N, H*W, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    ImageView mask /* [N, H_out*W_out, G, K] */, T* __restrict__ out /* [num_items, group_channels] */,
    int64_t num_items, int items_per_block) {
  using A = Compute<T>;
  const int K = kTaps > 0 ? kTaps : int(p.K), group_channels = int(p.C / p.G), packets = group_channels / kPacketSize;
  const Index first = Index(blockIdx.x) * items_per_block;
  const int count = int(Index(num_items) - first < items_per_block ? Index(num_items) - first : items_per_block);
  GPU_DYNAMIC_SHARED(CornerWeights<A>, corner_weights);  // [items_per_block, K]
  // [items_per_block]: the item's element offset in input, or ~offset (< 0) if a corner of the item lies outside the
  // image
  int64_t* bases = reinterpret_cast<int64_t*>(corner_weights + items_per_block * K);
  SampledCell* cells = reinterpret_cast<SampledCell*>(bases + items_per_block);  // [items_per_block, K]

  // Prepare the taps, one item per thread.
  if (const int item = int(threadIdx.x); item < count) {
    const OutputItem<Index> output(p, first + item);
    bases[item] = output.n * input.image_stride + output.g * group_channels;
    uint32_t corners_inside = kAllCorners;  // of all taps
    prepare_taps<kTaps, kXFirst>(
        p, offset.pixel<const T>(output.n, output.i) + output.g * p.offset_group_stride,
        mask.pixel<const T>(output.n, output.i) + output.g * p.mask_group_stride, output.y, output.x,
        [&](int k, const Sample<A>& sample, A m) {
          if (sample.is_nan) m = A(NAN);  // makes the sum NaN: NaN times any value of the corners, also 0, is NaN
          bilinear(sample.fraction_y, sample.fraction_x, m, corner_weights[item * K + k].weight);
          cells[item * K + k] = sample.cell;
          corners_inside &= sample.cell.corners_inside;
        });
    if (corners_inside != kAllCorners) bases[item] = ~bases[item];
  }
  __syncthreads();

  const Index stride = Index(input.pixel_stride), row_stride = Index(p.W) * stride,
              step[4] = {0, stride, row_stride, row_stride + stride};
  // Compute the outputs, one packet of channels per thread.
  for (int work_index = int(threadIdx.x); work_index < count * packets; work_index += kThreads) {
    const int item = work_index / packets, packet = work_index - item * packets;
    const int64_t base = bases[item];
    const T* image = static_cast<const T*>(input.data) + (base < 0 ? ~base : base) + packet * kPacketSize;
    A total[kPacketSize] = {};
    const auto add_taps = [&](auto all_inside) {
#pragma unroll(kTaps > 0 && all_inside.value ? 3 : 1)
      for (int k = 0; k < K; ++k) {
        // Load the four corners, and add them times their weights.
        const CornerWeights<A> weights = corner_weights[item * K + k];
        const SampledCell cell = cells[item * K + k];
        const T* top_left = image + Index(cell.top_left) * stride;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const bool is_inside = all_inside.value || (cell.corners_inside >> corner & 1);
          const auto x = gpu::to_compute(gpu::load<kPacketSize>(top_left + step[corner], is_inside));
#pragma unroll
          for (int v = 0; v < kPacketSize; ++v) total[v] += weights.weight[corner] * x.values[v];
        }
      }
    };
    if (base < 0)
      add_taps(std::false_type{});
    else
      add_taps(std::true_type{});
    // Round and write back.
    gpu::AlignedArray<T, kPacketSize> result;
#pragma unroll
    for (int v = 0; v < kPacketSize; ++v) result.values[v] = gpu::from_compute<T>(total[v]);
    *reinterpret_cast<gpu::AlignedArray<T, kPacketSize>*>(
        out + int64_t(first + item) * group_channels + packet * kPacketSize) = result;
  }
}

}  // namespace
}  // namespace danet
