// The forward pass of multi-scale deformable attention (ms_deform_attn.h) on CUDA devices. Each thread block prepares
// the taps of its items (ms_deform_attn_taps.cuh), then gathers and sums their channels.
#pragma once

#include "ms_deform_attn_taps.cuh"

namespace danet {
namespace {

// A prepared tap: its cell, and the width of its level, which is the distance between the rows of the cell.
struct MsCell {
  int32_t top_left;  // pixel of value, start + y * W + x, of the top left corner; may lie outside the level
  uint32_t corners;  // the set of corners inside the level in the low four bits, W in the others
};

template <typename A>
GPU_DEVICE MsCell pack_cell(const MsLevel& level, const Sample<A>& sample) {
  const uint32_t inside = sample.is_nan ? 0 : sample.cell.corners_inside;
  const int32_t top_left = inside > 0 ? int32_t(level.start) + sample.cell.top_left : 0;
  return {top_left, inside | uint32_t(level.W) << 4};
}

// Computes out [num_items, D]. Each thread computes packets (16 bytes) of channels, one after the other: for a packet,
// it reads up to 4 * L * P packets of value and writes one packet of out. kPacketSize is the number of channels of a
// packet. Corners outside a level are not read. Shared memory holds, per item, L * P taps of 24 bytes (float).
// Not yet measured on a GPU.
template <typename T, typename S, typename Index, int kPacketSize>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 6 : 8)
    ms_forward_kernel(MsInputs in, T* __restrict__ out /* [num_items, D] */, int64_t num_items, int items_per_block) {
  using A = Compute<T>;
  const int K = int(in.p.L * in.p.P), D = int(in.p.D), packets = D / kPacketSize;
  const Index first = Index(blockIdx.x) * items_per_block;
  const int count = int(Index(num_items) - first < items_per_block ? Index(num_items) - first : items_per_block);
  GPU_DYNAMIC_SHARED(CornerWeights<A>, corner_weights);                                // [items_per_block, K]
  MsLevel* levels = reinterpret_cast<MsLevel*>(corner_weights + items_per_block * K);  // [L]
  SoftmaxFactors<A>* factors = reinterpret_cast<SoftmaxFactors<A>*>(levels + in.p.L);  // [items_per_block]
  MsCell* cells = reinterpret_cast<MsCell*>(factors + items_per_block);                // [items_per_block, K]

  // Prepare the taps, one per thread.
  prepare_points<A, S>(
      in, levels, factors, first, count, [&](int tap, const MsLevel& level, const Sample<A>& sample, A m) {
        // A NaN makes the sum NaN: NaN times any value of the corners, also 0, is NaN. An empty level adds nothing.
        if (sample.is_nan) m = A(NAN);
        if (level.start >= 0 && (level.H == 0 || level.W == 0)) m = 0;
        bilinear(sample.fraction_y, sample.fraction_x, m, corner_weights[tap].weight);
        cells[tap] = pack_cell(level, sample);
      });

  // Compute the outputs, one packet of channels per thread.
  const Index stride = Index(in.value.pixel_stride);
  for (int work_index = int(threadIdx.x); work_index < count * packets; work_index += kThreads) {
    const int item = work_index / packets, packet = work_index - item * packets;
    const MsItem<Index> output(in.p, first + item);
    const T* head = in.value.pixel<const T>(output.n, 0) + int64_t(output.m) * in.p.head_stride + packet * kPacketSize;
    A total[kPacketSize] = {};
#pragma unroll 2
    for (int k = 0; k < K; ++k) {
      // Load the four corners, and add them times their weights.
      const CornerWeights<A> weights = corner_weights[item * K + k];
      const MsCell cell = cells[item * K + k];
      const T* top_left = head + Index(cell.top_left) * stride;
      const Index row_stride = Index(cell.corners >> 4) * stride;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const auto x = gpu::to_compute(
            gpu::load<kPacketSize>(
                top_left + (corner / 2 * row_stride + corner % 2 * stride), cell.corners >> corner & 1));
#pragma unroll
        for (int v = 0; v < kPacketSize; ++v) total[v] += weights.weight[corner] * x.values[v];
      }
    }
    // Round and write back.
    gpu::AlignedArray<T, kPacketSize> result;
#pragma unroll
    for (int v = 0; v < kPacketSize; ++v) result.values[v] = gpu::from_compute<T>(total[v]);
    *reinterpret_cast<gpu::AlignedArray<T, kPacketSize>*>(out + int64_t(first + item) * D + packet * kPacketSize) =
        result;
  }
}

}  // namespace
}  // namespace danet
