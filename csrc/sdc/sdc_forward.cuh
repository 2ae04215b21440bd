// The forward pass of SDC (sdc.h) on CUDA devices. Each thread block prepares the taps of its items (an item is one
// group of channels of one output pixel, see sdc_taps.cuh), then gathers and sums their channels.
#pragma once

#include "sdc_taps.cuh"

namespace danet {
namespace {

// Computes out [num_items, group_channels]: the sums over the taps. Each thread computes one packet (16 bytes) of
// channels: it reads 4 * K packets of input and writes one packet of out. Each item reads 3 * K values of offset and
// mask once. Shared memory holds, per item, K taps of 24 bytes (float). Items whose corners all lie inside the image
// (the common case) take a fast path without bounds checks.
// Roofline, computed for N = 8, C = 64, 128x160 pixels, G = 4 and K = 9 (0.9 GFLOP) on an H200. Its device memory moves
// 4.3 TB/s. Its 132 multiprocessors run at 1.83 GHz. Per cycle, each multiprocessor reads 128 bytes from its L1 cache
// and issues instructions for 128 lanes: all of them together, 31e12 bytes and 31e12 lane instructions per second.
//   bfloat16: Device memory moves 77 MB in 18 us. The L1 caches deliver 0.75 GB in 24 us. Compiled for sm_90, a lane
//   issues 82 instructions per tap and packet (64 of them are products and conversions) and 500 per item. That is 134
//   instructions per output element, which take 45 us. Instruction issue is the bottleneck. At its full rate the kernel
//   would reach 40 % of the copy bandwidth; we expect 35 %.
//   float32: Device memory moves 155 MB in 36 us. The L1 caches deliver 1.5 GB in 49 us. A lane issues 34 instructions
//   per tap and packet. That is 126 instructions per output element, which take 43 us. The L1 cache is the bottleneck.
//   At its full rate the kernel would reach 73 % of the copy bandwidth; we expect 55 %.
// Not yet measured on a GPU.
template <typename T, typename Index, int kVector, int kTaps, bool kXFirst>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 6 : 8) forward_kernel(
    SdcParams p, ImageView input /* [N, H*W, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    ImageView mask /* [N, H_out*W_out, G, K] */, T* __restrict__ out /* [num_items, group_channels] */,
    int64_t num_items, int items_per_block) {
  using A = Compute<T>;
  const int K = kTaps > 0 ? kTaps : int(p.K), group_channels = int(p.C / p.G), packets = group_channels / kVector;
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
          bilinear(sample.y, sample.x, m, corner_weights[item * K + k].weight);
          cells[item * K + k] = sample.cell;
          corners_inside &= sample.cell.corners_inside;
        });
    if (corners_inside != kAllCorners) bases[item] = ~bases[item];
  }
  __syncthreads();

  const Index stride = Index(input.pixel_stride), row = Index(p.W) * stride, step[4] = {0, stride, row, row + stride};
  // Compute the outputs, one packet of channels per thread.
  for (int work_index = int(threadIdx.x); work_index < count * packets; work_index += kThreads) {
    const int item = work_index / packets, packet = work_index - item * packets;
    const int64_t base = bases[item];
    const T* image = static_cast<const T*>(input.data) + (base < 0 ? ~base : base) + packet * kVector;
    A total[kVector] = {};
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
          const auto x = gpu::to_compute(gpu::load<kVector>(top_left + step[corner], is_inside));
#pragma unroll
          for (int v = 0; v < kVector; ++v) total[v] += weights.weight[corner] * x.values[v];
        }
      }
    };
    if (base < 0)
      add_taps(std::false_type{});
    else
      add_taps(std::true_type{});
    // Round and write back.
    gpu::AlignedArray<T, kVector> result;
#pragma unroll
    for (int v = 0; v < kVector; ++v) result.values[v] = gpu::from_compute<T>(total[v]);
    *reinterpret_cast<gpu::AlignedArray<T, kVector>*>(out + int64_t(first + item) * group_channels + packet * kVector) =
        result;
  }
}

}  // namespace
}  // namespace danet
