// SDC forward on CUDA devices.
#pragma once

#include "sdc_taps.cuh"

namespace danet {
namespace {

// out [items, D] = the sum over the taps. A thread reads 4 K packets of input and writes one of out; an item reads 3 K
// numbers of offset and mask once. Shared memory: items * K taps of 24 bytes (float). A packet a thread: fewer, wider loads.
// Floors (C = 64, G = 4, K = 9, bfloat16): 4 bytes an element of out to device memory (input, out, and 3 K G / C = 1.7
// numbers of offset and mask: 7.4 bytes), 144 bytes from the first-level cache, and 72 FMA + 72 conversions a pair of
// elements: issue binds, at 48 % of the copy bandwidth; 70 % in float32. Not yet measured on a GPU.
template <typename T, typename Index, int kVector, int kTaps>
__global__ void __launch_bounds__(kThreads, 8) forward(
    SdcParams p, ImageView input /* [N, H*W, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    ImageView mask /* [N, H_out*W_out, G, K] */, T* __restrict__ out /* [items, D] */, int64_t items, int block_items) {
  using A = Compute<T>;
  const int K = kTaps > 0 ? kTaps : int(p.K), D = int(p.C / p.G), packets = D / kVector;
  const Index first = Index(blockIdx.x) * block_items;
  const int count = int(Index(items) - first < block_items ? Index(items) - first : block_items);
  GPU_DYNAMIC_SHARED(Corners<A>, corners);                                         // [block_items, K]
  int64_t* bases = reinterpret_cast<int64_t*>(corners + block_items * K);          // [block_items] in elements of input
  Place* places = reinterpret_cast<Place*>(bases + block_items);                   // [block_items, K]

  for (int item = int(threadIdx.x); item < count; item += kThreads) {
    const Item<Index> at(p, first + item);
    bases[item] = at.n * input.image_stride + at.g * D;
    prepare_taps<kTaps>(
        p, offset.pixel<const T>(at.n, at.i) + 2 * at.g * K, mask.pixel<const T>(at.n, at.i) + at.g * K, at.y, at.x,
        [&](int k, const Sample<A>& sample, A m) {
          if (sample.is_nan) m = A(NAN);  // whatever its corners hold: zeros times this are it, too
          bilinear(sample.y, sample.x, m, corners[item * K + k].weight);
          places[item * K + k] = sample.place;
        });
  }
  __syncthreads();

  const Index stride = Index(input.pixel_stride), row = Index(p.W) * stride, step[4] = {0, stride, row, row + stride};
  for (int unit = int(threadIdx.x); unit < count * packets; unit += kThreads) {
    const int item = unit / packets, packet = unit - item * packets;
    const T* image = static_cast<const T*>(input.data) + bases[item] + packet * kVector;
    A total[kVector] = {};
#pragma unroll(kTaps > 0 ? 2 : 1)
    for (int k = 0; k < K; ++k) {
      const Corners<A> weights = corners[item * K + k];
      const Place place = places[item * K + k];
      const Index cell = place.pixel * stride;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const auto x = gpu::load<kVector>(image + (cell + step[corner]), place.present >> corner & 1);
#pragma unroll
        for (int v = 0; v < kVector; ++v) total[v] += weights.weight[corner] * gpu::to_compute(x.values[v]);
      }
    }
    gpu::Group<T, kVector> result;
#pragma unroll
    for (int v = 0; v < kVector; ++v) result.values[v] = gpu::from_compute<T>(total[v]);
    *reinterpret_cast<gpu::Group<T, kVector>*>(out + int64_t(first + item) * D + packet * kVector) = result;
  }
}

}  // namespace
}  // namespace danet
