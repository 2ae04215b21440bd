// The backward pass of SDC (sdc.h) on CUDA devices. It sums grad_input with atomic additions or, if deterministic, in a
// fixed order.
#pragma once

#include "../common/ptx.cuh"
#include "sdc_taps.cuh"

namespace danet {
namespace {

// A prepared tap: the position in its cell, m, and top_left as in SampledCell.
template <typename A>
struct alignas(4 * sizeof(A)) BackwardTap {
  A fraction_y, fraction_x, m;
  int32_t top_left;
};

// A tap's corners inside the image (bits 0 to 3), and its place in the list of the taps that sample the same cell. Bits
// 4 to 7: the next tap of the list (0: none). kIsFollower: it is not the first tap of the list.
constexpr uint32_t kIsFollower = 1 << 8;
GPU_DEVICE int next_in_cell(uint32_t corners) { return int(corners >> 4 & 15); }

// Adds atomically to global memory.
GPU_DEVICE void atomic_add(double* p, const double (&v)[1]) { atomicAdd(p, v[0]); }
GPU_DEVICE void atomic_add(float* p, const float (&v)[1]) { atomicAdd(p, v[0]); }
GPU_DEVICE void atomic_add(float* p, const float (&v)[4]) { gpu::atomic_add_x4(p, v); }
GPU_DEVICE void atomic_add(float* p, const float (&v)[8]) {
  const float low[4] = {v[0], v[1], v[2], v[3]}, high[4] = {v[4], v[5], v[6], v[7]};
  gpu::atomic_add_x4(p, low);
  gpu::atomic_add_x4(p + 4, high);
}

// The channels of a packet that a lane adds to grad_input by atomic additions. The L2 cache adds one sector of 32 bytes
// at a time, so a reduction should fill the sectors that it touches.
template <int kPacketSize>
struct AddedChannels {  // one channel, or four: 16 bytes, two lanes fill a sector
  template <typename T>
  using Values = gpu::AlignedArray<T, kPacketSize>;

  GPU_DEVICE AddedChannels(int /* lane */, int /* packets */) {}
  template <typename T>
  GPU_DEVICE Values<T> load(const T* /* packet */, const Values<T>& loaded) const {
    return loaded;
  }
  template <typename T, typename A>
  GPU_DEVICE void add(A* to, A weight, const Values<T>& values) const {
    const auto g = gpu::to_compute(values);
    A added[kPacketSize];
#pragma unroll
    for (int v = 0; v < kPacketSize; ++v) added[v] = weight * g.values[v];
    if constexpr (kPacketSize == 4)
      gpu::atomic_add_x4(to, added);
    else
      atomicAdd(to, added[0]);
  }
};
// Eight channels, whose sums are 32 bytes of float32 but need two reductions of 16 bytes. A reduction of all lanes
// would fill only one half of each sector. So pairs of lanes share their two packets: the first reduction adds channels
// 0 to 3 (even lane) and 4 to 7 (odd lane) of the even lane's packet, the second those of the odd lane's packet. The
// offsets are relative to a lane's own packet.
template <>
struct AddedChannels<8> {
  template <typename T>
  struct Values {
    gpu::AlignedArray<T, 4> first, second;
  };
  int first_offset, second_offset;

  GPU_DEVICE AddedChannels(int lane, int packets) {
    const bool in_pairs = packets % 2 == 0, is_odd = lane % 2 == 1;
    first_offset = in_pairs && is_odd ? -4 : 0;
    second_offset = in_pairs && !is_odd ? 8 : 4;
  }
  template <typename T>
  GPU_DEVICE Values<T> load(const T* packet, const gpu::AlignedArray<T, 8>& /* loaded */) const {
    return {gpu::load<4>(packet + first_offset), gpu::load<4>(packet + second_offset)};
  }
  template <typename T>
  GPU_DEVICE void add(float* to, float weight, const Values<T>& values) const {
    const auto first = gpu::to_compute(values.first), second = gpu::to_compute(values.second);
    float added[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) added[v] = weight * first.values[v];
    gpu::atomic_add_x4(to + first_offset, added);
#pragma unroll
    for (int v = 0; v < 4; ++v) added[v] = weight * second.values[v];
    gpu::atomic_add_x4(to + second_offset, added);
  }
};

// The minimum number of blocks of backward_kernel per multiprocessor: the largest value that compiles without register
// spills.
template <typename T, typename Index>
constexpr int kBackwardBlocks = sizeof(Index) == 8 || std::is_same_v<T, Half> ? 4 : 5;

// Computes grad_offset and grad_mask; with kScatter also grad_input, by atomic additions to global memory. `lanes`
// neighboring lanes of a warp share an item. Each lane takes one packet of channels and computes its part of the
// gradients of m, y and x; shuffles sum these parts. So grad_offset and grad_mask need no atomics, and the gradient of
// the softmax needs no second pass over the image. A lane reads 4 * K packets of input and one of grad_output, and with
// kScatter adds 4 * K packets of float32. Shared memory holds, per item, K taps of 24 bytes (float). With kColumns
// (deform_im2col), every tap has a grad_output of its own. Otherwise, the taps of a 3x3 window that sample the same
// cell are added to grad_input together: with offsets of one pixel (standard deviation), 9 taps sample 7.7 cells on
// average. The additions to grad_input in the L2 cache are the bottleneck, and in float32 the number of instructions
// too: benchmarks/gpu_model, docs/performance_model.md. Not yet measured on a GPU.
template <typename T, typename Index, int kPacketSize, int kTaps, bool kXFirst, bool kScatter, bool kColumns>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T, Index>) backward_kernel(
    SdcParams p, SamplingGrid<Compute<T>> sampling,
    ImageView grad_output /* [N, H_out*W_out, C], or [N, H_out*W_out, K, C] if kColumns */,
    ImageView input /* [N, H*W, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    ImageView mask /* [N, H_out*W_out, G, K] */, Compute<T>* __restrict__ grad_input /* [N, H*W, C] */,
    ImageView grad_offset /* as offset */, ImageView grad_mask /* as mask */, int64_t num_items, int items_per_block,
    int group_channels, int log2_lanes) {
  using A = Compute<T>;
  using Packet = gpu::AlignedArray<T, kPacketSize>;
  constexpr bool kMergesTaps = kTaps > 0 && kScatter && !kColumns;
  const int K = kTaps > 0 ? kTaps : sampling.K, packets = group_channels / kPacketSize, lanes = 1 << log2_lanes;
  const Index first = Index(blockIdx.x) * items_per_block;
  const int count = int(Index(num_items) - first < items_per_block ? Index(num_items) - first : items_per_block);
  GPU_DYNAMIC_SHARED(BackwardTap<A>, taps);                                               // [items_per_block, K]
  A* grads_m = reinterpret_cast<A*>(taps + items_per_block * K);                          // [items_per_block, K]
  uint32_t* corners_inside = reinterpret_cast<uint32_t*>(grads_m + items_per_block * K);  // [items_per_block, K]

  // Prepare the taps, one item per thread.
  if (const int item = int(threadIdx.x); item < count) {
    const OutputItem<Index> output(p, first + item);
    [[maybe_unused]] SampledCell cells[kMergesTaps ? kTaps : 1];
    prepare_taps<kTaps, kXFirst>(
        sampling, offset.pixel<const T>(output.n, output.i) + output.g * p.offset_group_stride,
        mask.pixel<const T>(output.n, output.i) + output.g * p.mask_group_stride, output.y, output.x,
        [&](int k, const Sample<A>& sample, A m) {
          const SampledCell cell = sample.cell;
          taps[item * K + k] = {sample.fraction_y, sample.fraction_x, m, cell.top_left};
          // Append this tap to the list of its cell: find the last earlier tap that samples the same cell.
          int previous = -1;
          if constexpr (kMergesTaps) {
            cells[k] = cell;
#pragma unroll
            for (int j = 0; j < kTaps; ++j)
              if (j < k && cells[j].top_left == cell.top_left && cells[j].corners_inside == cell.corners_inside)
                previous = j;
            if (previous >= 0) corners_inside[item * K + previous] |= uint32_t(k) << 4;
          }
          corners_inside[item * K + k] = cell.corners_inside | (previous >= 0 ? kIsFollower : 0);
        });
  }
  __syncthreads();

  const Index stride = Index(input.pixel_stride), row_stride = Index(p.W) * stride;
  const Index grad_stride = Index(p.C), grad_row_stride = Index(p.W) * grad_stride;
  const int lane = int(threadIdx.x) & (lanes - 1), items_per_pass = kThreads >> log2_lanes;
  const AddedChannels<kPacketSize> added_channels(lane, packets);
  // All threads run the same number of passes, because the shuffles need every lane.
  const int passes = (count + items_per_pass - 1) >> (kLog2Threads - log2_lanes);
  for (int pass = 0; pass < passes; ++pass) {
    const int item = pass * items_per_pass + (int(threadIdx.x) >> log2_lanes);
    const bool active = item < count;
    const OutputItem<Index> output(p, first + (active ? item : 0));
    const T* grad = grad_output.pixel<const T>(output.n, output.i) + output.g * group_channels;
    const T* image = input.pixel<const T>(output.n, 0) + output.g * group_channels;
    A* grad_image = grad_input + int64_t(output.n) * p.H * p.W * p.C + output.g * group_channels;
    Packet own = gpu::load<kPacketSize>(grad + lane * kPacketSize, active && lane < packets);
    typename AddedChannels<kPacketSize>::template Values<T> own_added{};
    if (kScatter && active && lane < packets) own_added = added_channels.load(grad + lane * kPacketSize, own);
    A mean = 0;  // sum_k m_k * grad_m_k, for the gradient of the softmax
#pragma unroll 1
    for (int k = 0; k < K; ++k) {
      // Load the tap, and compute the weights of its corners.
      BackwardTap<A> tap{};
      uint32_t tap_corners_inside = 0;
      if (active) tap = taps[item * K + k], tap_corners_inside = corners_inside[item * K + k];
      A weight[4], dot[4] = {};
      bilinear(tap.fraction_y, tap.fraction_x, tap.m, weight);
      // The first tap of a cell adds for all taps of the cell: sum their weights.
      const bool is_follower = tap_corners_inside & kIsFollower;
      if (kMergesTaps && !is_follower)
        for (int next = next_in_cell(tap_corners_inside); next > 0;
             next = next_in_cell(corners_inside[item * K + next])) {
          const BackwardTap<A> other = taps[item * K + next];
          A other_weight[4];
          bilinear(other.fraction_y, other.fraction_x, other.m, other_weight);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) weight[corner] += other_weight[corner];
        }
      if constexpr (kColumns)
        if (k > 0) {
          grad += p.tap_stride;
          own = gpu::load<kPacketSize>(grad + lane * kPacketSize, active && lane < packets);
          if (kScatter && active && lane < packets) own_added = added_channels.load(grad + lane * kPacketSize, own);
        }
      for (int packet = lane; active && packet < packets; packet += lanes) {
        const bool is_own = packet == lane;
        const Packet loaded = is_own ? own : gpu::load<kPacketSize>(grad + packet * kPacketSize);
        const auto g = gpu::to_compute(loaded);
        A* grad_top_left = grad_image + Index(tap.top_left) * grad_stride + packet * kPacketSize;
        typename AddedChannels<kPacketSize>::template Values<T> added_g = own_added;
        if (kScatter && !is_own) added_g = added_channels.load(grad + packet * kPacketSize, loaded);
        // Load all corners before the first atomic addition, because the compiler does not move loads across it.
        // Corners outside are replaced by the first pixel: a branch would wait for each load in turn.
        Packet corners[4];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const bool is_inside = tap_corners_inside >> corner & 1;
          const Index pixel = Index(tap.top_left) * stride + (corner / 2 * row_stride + corner % 2 * stride);
          corners[corner] = gpu::load<kPacketSize>(image + (is_inside ? pixel : 0) + packet * kPacketSize);
        }
        // Add the corners to their dot products.
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const auto x = gpu::to_compute(corners[corner]);
#pragma unroll
          for (int v = 0; v < kPacketSize; ++v) dot[corner] += g.values[v] * x.values[v];
        }
        // Scatter grad_output to the corners.
#pragma unroll
        for (int corner = 0; corner < 4; ++corner)
          if (kScatter && !is_follower && (tap_corners_inside >> corner & 1))
            added_channels.add(
                grad_top_left + (corner / 2 * grad_row_stride + corner % 2 * grad_stride), weight[corner], added_g);
      }
      // Corners outside have a dot product of zero, even if grad_output is NaN or infinite.
#pragma unroll
      for (int corner = 0; corner < 4; ++corner)
        if (!(tap_corners_inside >> corner & 1)) dot[corner] = 0;
      // Compute the gradients of m, y and x, and reduce them over the lanes of the item.
      A grad_m, grad_y, grad_x;
      bilinear_gradients(tap.fraction_y, tap.fraction_x, tap.m, dot, grad_m, grad_y, grad_x);
      for (int step = lanes / 2; step > 0; step /= 2) {
        grad_m += __shfl_xor_sync(~0u, grad_m, step);
        grad_y += __shfl_xor_sync(~0u, grad_y, step);
        grad_x += __shfl_xor_sync(~0u, grad_x, step);
      }
      mean += tap.m * grad_m;
      // Write grad_offset back, and keep grad_m until the mean is complete.
      if (active && lane == (k & (lanes - 1))) {
        grads_m[item * K + k] = grad_m;
        T* pair = grad_offset.pixel<T>(output.n, output.i) + output.g * p.offset_group_stride + 2 * k;
        pair[p.x_first ? 1 : 0] = gpu::from_compute<T>(A(p.offset_scale) * grad_y);
        pair[p.x_first ? 0 : 1] = gpu::from_compute<T>(A(p.offset_scale) * grad_x);
      }
    }
    // Write grad_mask back. The lane that stored grad_m of a tap reads it here.
    for (int k = lane; active && k < K; k += lanes) {
      const A grad_m = grads_m[item * K + k];
      grad_mask.pixel<T>(output.n, output.i)[output.g * p.mask_group_stride + k] =
          gpu::from_compute<T>(p.softmax ? taps[item * K + k].m * (grad_m - mean) : grad_m);
    }
  }
}

// Writes to row_ranges [N * H_out, 2] the first and the last input row that each output row samples, clipped to the
// image. If it samples none, the first is greater than the last. One block per output row. Only the deterministic path
// needs it.
template <typename T>
__global__ void __launch_bounds__(kThreads) find_row_ranges(
    SdcParams p, SamplingGrid<Compute<T>> sampling, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    int32_t* __restrict__ row_ranges /* [N * H_out, 2] */) {
  using A = Compute<T>;
  GPU_SHARED(ends, int32_t[2]);
  if (threadIdx.x == 0) ends[0] = int32_t(p.H), ends[1] = -1;
  __syncthreads();
  // Find the range of the taps of each thread.
  const int64_t n = blockIdx.x / p.H_out, y = blockIdx.x - n * p.H_out;
  const A center_y = A(sdc_center(p, 0)) + A(y * p.stride[0]), center_x = A(sdc_center(p, 1));
  int32_t first = int32_t(p.H), last = -1;
  for (int64_t i = threadIdx.x; i < p.W_out * p.G * p.K; i += kThreads) {
    const int64_t x = i / (p.G * p.K), j = i - x * (p.G * p.K), k = j % p.K;
    const int tap = int(k) + (p.remove_center && k >= p.K / 2 ? 1 : 0),
              inner_size = int(p.kernel_size[p.x_first ? 0 : 1]);
    const T* pair = offset.pixel<const T>(n, y * p.W_out + x) + j / p.K * p.offset_group_stride + 2 * k;
    const Sample<A> sample = locate_sample<A>(
        sampling, p.x_first, tap / inner_size, tap % inner_size, center_y, center_x + A(x * p.stride[1]),
        gpu::to_compute(pair[0]), gpu::to_compute(pair[1]));
    const uint32_t corners_inside = sample.cell.corners_inside;
    if (corners_inside & kTopCorners) first = min(first, sample.row), last = max(last, sample.row);
    if (corners_inside & kBottomCorners) first = min(first, sample.row + 1), last = max(last, sample.row + 1);
  }
  // Reduce over the block, and write back.
  atomicMin(&ends[0], first);
  atomicMax(&ends[1], last);
  __syncthreads();
  if (threadIdx.x < 2) row_ranges[2 * int64_t(blockIdx.x) + threadIdx.x] = ends[threadIdx.x];
}

// Computes grad_input without atomics, with the same bits in every run. A warp owns one group of one input row, and
// adds all contributions to it in the order of the output pixels. It visits the output rows that sample its row, and
// prepares the taps of up to 32 pixels at a time, one pixel per lane. This reads more than backward_kernel, because an
// output row is prepared once for each input row that it samples.
template <typename T, int kPacketSize>
__global__ void __launch_bounds__(32, 16) backward_in_order(
    SdcParams p, SamplingGrid<Compute<T>> sampling,
    ImageView grad_output /* [N, H_out*W_out, C], or [N, H_out*W_out, K, C] if tap_stride > 0 */,
    ImageView offset /* [N, H_out*W_out, G, K, 2] */, ImageView mask /* [N, H_out*W_out, G, K] */,
    const int32_t* __restrict__ row_ranges /* [N * H_out, 2] */,
    Compute<T>* __restrict__ grad_input /* [N, H*W, C], zeros */, int pixels) {
  using A = Compute<T>;
  const int K = int(p.K), group_channels = int(p.C / p.G), packets = group_channels / kPacketSize,
            lane = int(threadIdx.x);
  GPU_DYNAMIC_SHARED(CornerWeights<A>, corner_weights);                              // [pixels, K]
  SampledCell* cells = reinterpret_cast<SampledCell*>(corner_weights + pixels * K);  // [pixels, K]
  const int64_t row_index = blockIdx.x / p.G, n = row_index / p.H;
  const int g = int(blockIdx.x - row_index * p.G), row = int(row_index - n * p.H), W = int(p.W);
  A* grad_row = grad_input + row_index * p.W * p.C + g * group_channels;
  for (int64_t y = 0; y < p.H_out; ++y) {
    // Skip output rows that do not sample this row.
    const int32_t* ends = row_ranges + 2 * (n * p.H_out + y);
    if (row < ends[0] || row > ends[1]) continue;
    for (int64_t x = 0; x < p.W_out; x += pixels) {
      // Prepare the taps, one pixel per lane.
      const int count = int(p.W_out - x < pixels ? p.W_out - x : pixels);
      const int64_t i = y * p.W_out + x + lane;
      if (lane < count)
        prepare_taps</*kTaps=*/0, /*kXFirst=*/false>(
            sampling, offset.pixel<const T>(n, i) + g * p.offset_group_stride,
            mask.pixel<const T>(n, i) + g * p.mask_group_stride, int(y), int(x) + lane,
            [&](int k, const Sample<A>& sample, A m) {
              bilinear(sample.fraction_y, sample.fraction_x, m, corner_weights[lane * K + k].weight);
              cells[lane * K + k] = sample.cell;
            });
      __syncwarp();
      // Add grad_output to the corners that lie in this row.
      for (int j = 0; j < count * K; ++j) {
        const SampledCell cell = cells[j];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const int pixel = cell.top_left + corner / 2 * W + corner % 2, column = pixel - row * W;
          if (!(cell.corners_inside >> corner & 1) || column < 0 || column >= W) continue;
          const T* grad = grad_output.pixel<const T>(n, i - lane + j / K) + j % K * p.tap_stride + g * group_channels;
          for (int packet = lane; packet < packets; packet += 32) {
            const auto values = gpu::to_compute(gpu::load<kPacketSize>(grad + packet * kPacketSize));
            A* to = grad_row + column * p.C + packet * kPacketSize;
#pragma unroll
            for (int v = 0; v < kPacketSize; ++v) to[v] += corner_weights[j].weight[corner] * values.values[v];
          }
        }
      }
      __syncwarp();
    }
  }
}

}  // namespace
}  // namespace danet
