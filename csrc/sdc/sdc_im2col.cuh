// deform_im2col on CUDA devices: SDC (sdc.h) without the sum over the taps.
#pragma once

#include "sdc_taps.cuh"

namespace danet {
namespace {

// Computes out [N, H_out*W_out, K, C] of deform_im2col: every sample, times m. Each thread computes packets of channels
// of one tap. Device memory limits it: it writes K * C values per pixel. Not yet measured on a GPU. One block per
// multiprocessor is named as the minimum, because nvcc otherwise spills registers of the float64 kernel for sm_100 and
// sm_120.
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
