// The backward pass of multi-scale deformable attention (ms_deform_attn.h) on CUDA devices. It sums grad_value with
// atomic additions or, if deterministic, in a fixed order.
#pragma once

#include "../sdc/sdc_backward.cuh"
#include "ms_deform_attn_forward.cuh"

namespace danet {
namespace {

// Computes the gradients of locations and weights; with kScatter also grad_value, by atomic additions to global memory.
// Otherwise it writes the weights, after the softmax, to `normalized` for ms_backward_in_order. As in SDC's
// backward_kernel, `lanes` neighboring lanes of a warp share an item: each takes packets of channels, and shuffles sum
// their parts of the gradients. Shared memory holds, per item, L * P taps of 24 bytes (float).
// Not yet measured on a GPU.
template <typename T, typename S, typename Index, int kPacketSize, bool kScatter>
__global__ void __launch_bounds__(kThreads, 5) ms_backward_kernel(
    MsInputs in, ImageView grad_output /* [N, Q, M*D] */, Compute<T>* __restrict__ grad_value /* [N, S, M, D] */,
    S* __restrict__ grad_locations /* [num_items, K, 2] */, S* __restrict__ grad_weights /* [num_items, K] */,
    Compute<T>* __restrict__ normalized /* [num_items, K] */, int64_t num_items, int items_per_block, int lanes) {
  using A = Compute<T>;
  using Packet = gpu::AlignedArray<T, kPacketSize>;
  const int K = int(in.p.L * in.p.P), P = int(in.p.P), D = int(in.p.D), packets = D / kPacketSize;
  const Index first = Index(blockIdx.x) * items_per_block;
  const int count = int(Index(num_items) - first < items_per_block ? Index(num_items) - first : items_per_block);
  GPU_DYNAMIC_SHARED(BackwardTap<A>, taps);                                            // [items_per_block, K]
  MsLevel* levels = reinterpret_cast<MsLevel*>(taps + items_per_block * K);            // [L]
  SoftmaxFactors<A>* factors = reinterpret_cast<SoftmaxFactors<A>*>(levels + in.p.L);  // [items_per_block]
  A* grads_m = reinterpret_cast<A*>(factors + items_per_block);                        // [items_per_block, K]
  uint32_t* corners = reinterpret_cast<uint32_t*>(grads_m + items_per_block * K);      // [items_per_block, K]

  // Prepare the taps, one per thread.
  prepare_points<A, S>(
      in, levels, factors, first, count, [&](int tap, const MsLevel& level, const Sample<A>& sample, A m) {
        const MsCell cell = pack_cell(level, sample);
        taps[tap] = {sample.fraction_y, sample.fraction_x, m, cell.top_left};
        corners[tap] = cell.corners;
        if (!kScatter) normalized[int64_t(first) * K + tap] = m;
      });

  const Index stride = Index(in.value.pixel_stride), grad_stride = Index(in.p.M * in.p.D);
  const int lane = int(threadIdx.x) % lanes, items_per_pass = kThreads / lanes;
  // All threads run the same number of passes, because the shuffles need every lane.
  const int passes = (count + items_per_pass - 1) / items_per_pass;
  for (int pass = 0; pass < passes; ++pass) {
    const int item = pass * items_per_pass + int(threadIdx.x) / lanes;
    const bool active = item < count;
    const MsItem<Index> output(in.p, first + (active ? item : 0));
    const T* grad = grad_output.pixel<const T>(output.n, output.q) + int64_t(output.m) * D;
    const T* head = in.value.pixel<const T>(output.n, 0) + int64_t(output.m) * in.p.head_stride;
    A* grad_head = grad_value + int64_t(output.n) * in.p.S * grad_stride + int64_t(output.m) * D;
    const Packet own = gpu::load<kPacketSize>(grad + lane * kPacketSize, active && lane < packets);
    const int64_t to = (int64_t(first) + item) * K;
    A mean = 0;  // sum_k m_k * grad_m_k, for the gradient of the softmax
#pragma unroll 1
    for (int k = 0; k < K; ++k) {
      // Load the tap, and compute the weights of its corners.
      BackwardTap<A> tap{};
      uint32_t tap_corners = 0;
      if (active) tap = taps[item * K + k], tap_corners = corners[item * K + k];
      const Index row_pixels = Index(tap_corners >> 4);
      A weight[4], dot[4] = {};
      bilinear(tap.fraction_y, tap.fraction_x, tap.m, weight);
      for (int packet = lane; active && packet < packets; packet += lanes) {
        const auto g = gpu::to_compute(packet == lane ? own : gpu::load<kPacketSize>(grad + packet * kPacketSize));
        const T* top_left = head + Index(tap.top_left) * stride + packet * kPacketSize;
        A* grad_top_left = grad_head + Index(tap.top_left) * grad_stride + packet * kPacketSize;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          // Load the corner, add to its dot product, and scatter grad_output to it.
          const bool is_inside = tap_corners >> corner & 1;
          const Index distance = corner / 2 * row_pixels + corner % 2;
          const auto x = gpu::to_compute(gpu::load<kPacketSize>(top_left + distance * stride, is_inside));
          A added[kPacketSize];
#pragma unroll
          for (int v = 0; v < kPacketSize; ++v) {
            if (is_inside) dot[corner] += g.values[v] * x.values[v];
            added[v] = weight[corner] * g.values[v];
          }
          if (kScatter && is_inside) atomic_add(grad_top_left + distance * grad_stride, added);
        }
      }
      // Compute the gradients of m, y and x, and reduce them over the lanes of the item.
      A grad_m, grad_y, grad_x;
      bilinear_gradients(tap.fraction_y, tap.fraction_x, tap.m, dot, grad_m, grad_y, grad_x);
      for (int step = lanes / 2; step > 0; step /= 2) {
        grad_m += __shfl_xor_sync(~0u, grad_m, step);
        grad_y += __shfl_xor_sync(~0u, grad_y, step);
        grad_x += __shfl_xor_sync(~0u, grad_x, step);
      }
      mean += tap.m * grad_m;
      // Write the gradient of the location back, and keep grad_m until the mean is complete.
      if (active && lane == k % lanes) {
        const MsLevel level = levels[k / P];
        grads_m[item * K + k] = grad_m;
        grad_locations[2 * (to + k)] = gpu::from_compute<S>(A(level.W) * grad_x);
        grad_locations[2 * (to + k) + 1] = gpu::from_compute<S>(A(level.H) * grad_y);
      }
    }
    // Write the gradients of the weights back. The lane that stored grad_m of a tap reads it here.
    for (int k = lane; active && k < K; k += lanes) {
      const A grad_m = grads_m[item * K + k];
      grad_weights[to + k] = gpu::from_compute<S>(in.p.softmax ? taps[item * K + k].m * (grad_m - mean) : grad_m);
    }
  }
}

// The number of pixels of grad_value that one warp of ms_backward_in_order computes.
constexpr int kPixelsPerWarp = 64;

// Computes grad_value without atomics, with the same bits in every run. A warp owns a range of pixels of one head, and
// adds all contributions to it in the order of levels, queries and points. Each lane locates one tap; then the lanes
// share the channels of every tap that touches the range.
template <typename T, typename S>
__global__ void __launch_bounds__(32, 16) ms_backward_in_order(
    MsInputs in, ImageView grad_output /* [N, Q, M*D] */,
    const Compute<T>* __restrict__ normalized /* [num_items, K] */,
    Compute<T>* __restrict__ grad_value /* [N, S, M, D], zeros */) {
  using A = Compute<T>;
  const MsDeformAttnParams& p = in.p;
  const int lane = int(threadIdx.x), P = int(p.P), K = int(p.L * p.P), D = int(p.D);
  const int64_t ranges = (p.S + kPixelsPerWarp - 1) / kPixelsPerWarp;
  const int64_t image_head = blockIdx.x / ranges, n = image_head / p.M, m = image_head - n * p.M;
  const int64_t begin = (blockIdx.x - image_head * ranges) * kPixelsPerWarp;
  const int64_t end = begin + kPixelsPerWarp < p.S ? begin + kPixelsPerWarp : p.S;
  A* grad_head = grad_value + (n * p.S * p.M + m) * p.D;
  for (int l = 0; l < int(p.L); ++l) {
    // Skip levels outside the range.
    const MsLevel level = read_level(in, l);
    if (level.start < 0 || level.start >= end || level.start + int64_t(level.H) * level.W <= begin) continue;
    for (int64_t base = 0; base < p.Q * P; base += 32) {
      // Locate the taps of 32 queries and points.
      const int64_t i = base + lane, q = i / P, k = l * P + (i - q * P);
      CornerWeights<A> weights{};
      int32_t top_left = 0;
      uint32_t touched = 0;  // the set of corners in the range
      if (i < p.Q * P) {
        const Sample<A> sample = locate_point<A>(level, in.locations.pixel<const S>(n, q) + (m * K + k) * 2);
        const MsCell cell = pack_cell(level, sample);
        bilinear(sample.fraction_y, sample.fraction_x, normalized[((n * p.Q + q) * p.M + m) * K + k], weights.weight);
        top_left = cell.top_left;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t pixel = int64_t(top_left) + corner / 2 * level.W + corner % 2;
          if ((cell.corners >> corner & 1) && pixel >= begin && pixel < end) touched |= 1u << corner;
        }
      }
      // Add grad_output to the corners in the range, one tap after the other.
      for (uint32_t pending = __ballot_sync(~0u, touched != 0); pending != 0; pending &= pending - 1) {
        const int source = __ffs(int(pending)) - 1;
        const uint32_t corners = __shfl_sync(~0u, touched, source);
        const int32_t cell = __shfl_sync(~0u, top_left, source);
        A weight[4];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) weight[corner] = __shfl_sync(~0u, weights.weight[corner], source);
        const T* grad = grad_output.pixel<const T>(n, (base + source) / P) + m * p.D;
        for (int d = lane; d < D; d += 32) {
          const A value = gpu::to_compute(grad[d]);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner)
            if (corners >> corner & 1)
              grad_head[(int64_t(cell) + corner / 2 * level.W + corner % 2) * p.M * p.D + d] += weight[corner] * value;
        }
      }
    }
  }
}

}  // namespace
}  // namespace danet
