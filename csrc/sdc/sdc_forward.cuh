// SDC forward on CUDA devices: each thread block prepares the taps of its items, then gathers and sums their channels.
#pragma once

#include "sdc_taps.cuh"

namespace danet {
namespace {

// out [items, D] = the sum over the taps. Each thread computes one packet (16 bytes) of channels: it reads 4 K packets
// of input and writes one of out. Each item reads 3 K values of offset and mask once. Shared memory: items * K taps of
// 24 bytes (float). Items whose corners all lie inside the image (the common case) take a fast path without bounds
// checks.
// Computed roofline of N8 C64 128x160, G = 4, K = 9, 0.9 GFLOP, on an H200 (4.3 TB/s; 132 multiprocessors at 1.83 GHz,
// each reads 128 bytes from its cache and issues for 128 lanes per cycle, in total 31e12 per second each):
//   bfloat16: 77 MB, 18 us; 0.75 GB from the first-level cache, 24 us; compiled for sm_90 82 instructions per tap and
//   packet (64 of them products and conversions) and 500 per item, 134 per element of out, 45 us. Instruction issue is
//   the bottleneck: 40 % of the copy bandwidth at its full rate, 35 % expected.
//   float32: 155 MB, 36 us; 1.5 GB from the first-level cache, 49 us; 34 instructions per tap and packet, 126 per
//   element, 43 us. The first-level cache is the bottleneck: 73 % of the copy bandwidth at its full rate, 55 %
//   expected.
// Not yet measured on a GPU.
template <typename T, typename Index, int kVector, int kTaps, bool kXFirst>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 6 : 8) forward_kernel(
    SdcParams p, ImageView input /* [N, H*W, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    ImageView mask /* [N, H_out*W_out, G, K] */, T* __restrict__ out /* [items, D] */, int64_t items, int block_items) {
  using A = Compute<T>;
  const int K = kTaps > 0 ? kTaps : int(p.K), D = int(p.C / p.G), packets = D / kVector;
  const Index first = Index(blockIdx.x) * block_items;
  const int count = int(Index(items) - first < block_items ? Index(items) - first : block_items);
  GPU_DYNAMIC_SHARED(CornerWeights<A>, corners);  // [block_items, K]
  // [block_items], in elements of input; complemented if a corner of the item lies outside the image
  int64_t* bases = reinterpret_cast<int64_t*>(corners + block_items * K);
  SamplePixel* sampled = reinterpret_cast<SamplePixel*>(bases + block_items);  // [block_items, K]

  // Prepare the taps, one item per thread.
  if (const int item = int(threadIdx.x); item < count) {
    const OutputItem<Index> at(p, first + item);
    bases[item] = at.n * input.image_stride + at.g * D;
    uint32_t present = 15;
    prepare_taps<kTaps, kXFirst>(
        p, offset.pixel<const T>(at.n, at.i) + at.g * p.offset_group,
        mask.pixel<const T>(at.n, at.i) + at.g * p.mask_group, at.y, at.x, [&](int k, const Sample<A>& sample, A m) {
          if (sample.is_nan) m = A(NAN);  // makes the sum NaN: NaN times any value of the corners, also 0, is NaN
          bilinear(sample.y, sample.x, m, corners[item * K + k].weight);
          sampled[item * K + k] = sample.at;
          present &= sample.at.present;
        });
    if (present != 15) bases[item] = ~bases[item];
  }
  __syncthreads();

  const Index stride = Index(input.pixel_stride), row = Index(p.W) * stride, step[4] = {0, stride, row, row + stride};
  // Compute the outputs, one packet of channels per thread.
  for (int unit = int(threadIdx.x); unit < count * packets; unit += kThreads) {
    const int item = unit / packets, packet = unit - item * packets;
    const int64_t base = bases[item];
    const T* image = static_cast<const T*>(input.data) + (base < 0 ? ~base : base) + packet * kVector;
    A total[kVector] = {};
    const auto add_taps = [&](auto inside) {
#pragma unroll(kTaps > 0 && inside.value ? 3 : 1)
      for (int k = 0; k < K; ++k) {
        // Load the four corners, and add them times their weights.
        const CornerWeights<A> weights = corners[item * K + k];
        const SamplePixel at = sampled[item * K + k];
        const T* cell = image + Index(at.pixel) * stride;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const bool present = inside.value || (at.present >> corner & 1);
          const auto x = gpu::to_compute(gpu::load<kVector>(cell + step[corner], present));
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
    *reinterpret_cast<gpu::AlignedArray<T, kVector>*>(out + int64_t(first + item) * D + packet * kVector) = result;
  }
}

}  // namespace
}  // namespace danet
