// SaFEM (safem.h) on CUDA devices, for float16 and bfloat16: one kernel takes a tile of pixels through all steps.
// Between the steps, the values of the tile stay in shared memory.
//
// A tile is 16 or 32 successive pixels of an image. The blocks of a thread block cluster share a tile, because a small
// image has too few tiles to fill the device, and because one multiprocessor would take too long to load the large
// weights of many channels. In the steps that treat pixels separately, each block computes its share of the pixels; in
// a 1x1 convolution, its share of the output channels for all pixels. Results that all blocks need next are written to
// the shared memory of each of them.
//
//   step                            divided by   written to                          bytes of shared memory
//   depth-wise convolution, ReLU    pixels       features, in all blocks             2 per pixel and channel
//   offsets and mask                channels     predicted, in the pixel's block     4 * 27 * G per own pixel
//   sampling with SDC               pixels       features, in all blocks             24 * 9 * G per own pixel, for taps
//   expand, GELU                    channels     hidden, in all blocks               4 per pixel and channel
//   reduce                          channels     logits, in the pixel's block        4 per own pixel and channel
//   softmax gate                    pixels       out
//
// A barrier of the cluster separates the steps. The taps and `hidden` share one region of memory, and `features` and
// `logits` another one. A barrier lies between the last read of the first and the first write of the second.
// benchmarks/gpu_model predicts the time from the compiled code: docs/performance_model.md. Not yet measured on a GPU.
#pragma once

#include "../sdc/sdc_taps.cuh"
#include "safem.h"
#include "safem_matrix.cuh"

namespace danet {
namespace {

constexpr int kSafemPacket = 8;  // channels of 16 bytes

// The packed weights (danet/ops/fused_safem.py): the parts follow each other in this order. depthwise is [9, C], the
// matrices are packed as in safem_matrix.cuh, and predictor_bias is padded with zeros to a multiple of 16.
template <typename T>
struct PackedSafem {
  const T *depthwise, *depthwise_bias, *predictor, *predictor_bias, *expand, *expand_bias, *reduce, *reduce_bias, *end;

  PackedSafem(const T* packed, int C, int G) {
    const int K = round_up(C, kBlockK), predictions = round_up(3 * int(kSafemTaps) * G, kChunkColumns);
    depthwise = packed;
    depthwise_bias = depthwise + kSafemTaps * C;
    predictor = depthwise_bias + C;
    predictor_bias = predictor + int64_t(predictions) * K;
    expand = predictor_bias + predictions;
    expand_bias = expand + 2 * int64_t(C) * K;
    reduce = expand_bias + 2 * C;
    reduce_bias = reduce + 2 * int64_t(C) * C;
    end = reduce_bias + C;
  }
};

// Where the values of a tile lie in the shared memory of a block, in bytes from its start.
struct SafemShared {
  int predicted, second_region, cells, size;  // features and logits lie at 0; hidden and the taps in the second region

  SafemShared(int C, int G, int tile_pixels, int own_pixels) {
    const int items = own_pixels * G * int(kSafemTaps);
    const int features = tile_pixels * operand_pitch(C) * 2, logits = own_pixels * result_pitch(C) * 4;
    predicted = features > logits ? features : logits;
    second_region = predicted + own_pixels * result_pitch(3 * int(kSafemTaps) * G) * 4;
    cells = second_region + items * int(sizeof(CornerWeights<float>));
    const int taps_end = cells + items * int(sizeof(SampledCell));
    const int hidden_end = second_region + tile_pixels * operand_pitch(2 * C) * 2;
    size = taps_end > hidden_end ? taps_end : hidden_end;
  }
};

// The arguments of the kernels. up.data is null for one level. Only safem_kernel writes `out`. Only sample_sums_kernel
// writes `sums` [N, tiles * cluster, C], the sums of z over the pixels of each block.
template <typename T>
struct SafemCall {
  ImageView input, up;  // [N, H*W, C], [N, ceil(H/2)*ceil(W/2), 4*C]
  const T* weight;      // [N, C]
  T* out;               // [N, H*W, C]
  float* sums;
  PackedSafem<T> packed;
  SafemShared shared;
  SamplingGrid<float> sampling;
  gpu::Divisor width, tiles, packets, operand_packets, groups;  // of an image, of an image, of C, of a row, G
  int C, pixels, tile_pixels, own_pixels, log2_own_pixels, log2_gate_lanes;  // pixels: H * W
  float factor;                                                              // scale * C
};

// The pixels of a thread block.
struct SafemTile {
  int n, first;    // image, and the first pixel of the tile
  int own;         // the first pixel of this block's share, counted from `first`
  int rank, size;  // of this block in its cluster
  int tile;

  template <typename T>
  explicit GPU_DEVICE SafemTile(const SafemCall<T>& p)
      : rank(int(gpu::cluster_rank())), size(int(gpu::cluster_size())) {
    const int index = int(blockIdx.x) / size;
    n = p.tiles.divide(index), tile = index - n * int(p.tiles.divisor);
    first = tile * p.tile_pixels, own = rank * p.own_pixels;
  }
};

// The barrier between two steps: of the cluster, or of the block if it is alone.
GPU_DEVICE void finish_step(const SafemTile& tile) {
  if (tile.size == 1) return __syncthreads();
  gpu::cluster_arrive();
  gpu::cluster_wait();
}

// Writes a value to the same place in the shared memory of every block of the cluster.
template <typename Value>
GPU_DEVICE void write_to_all(const SafemTile& tile, void* shared, const Value& value) {
  if (tile.size == 1) {
    *static_cast<Value*>(shared) = value;
    return;
  }
  for (int rank = 0; rank < tile.size; ++rank) *static_cast<Value*>(gpu::map_shared(shared, unsigned(rank))) = value;
}

// Writes a value to the shared memory of one block of the cluster.
template <typename Value>
GPU_DEVICE void write_to(const SafemTile& tile, int rank, void* shared, const Value& value) {
  *static_cast<Value*>(tile.size == 1 ? shared : gpu::map_shared(shared, unsigned(rank))) = value;
}

template <typename T>
GPU_DEVICE gpu::Packet<T> round_packet(const float (&values)[kSafemPacket]) {
  gpu::Packet<T> packet;
#pragma unroll
  for (int v = 0; v < kSafemPacket; ++v) packet.values[v] = gpu::from_compute<T>(values[v]);
  return packet;
}

// features = relu(depthwise(input) + bias), with zeros in padded columns and for pixels past the last one.
template <typename T>
GPU_DEVICE void convolve_depthwise(const SafemCall<T>& p, const SafemTile& tile, T* features) {
  const int packets = int(p.operand_packets.divisor), H = p.sampling.H, W = p.sampling.W;
  for (int work = int(threadIdx.x); work < p.own_pixels * packets; work += kSafemThreads) {
    const int own = p.operand_packets.divide(work), c = (work - own * packets) * kSafemPacket;
    const int pixel = tile.first + tile.own + own, y = p.width.divide(pixel), x = pixel - y * W;
    float sum[kSafemPacket] = {};
    if (pixel < p.pixels && c < p.C) {
      const auto bias = gpu::to_compute(gpu::load<kSafemPacket>(p.packed.depthwise_bias + c));
#pragma unroll
      for (int v = 0; v < kSafemPacket; ++v) sum[v] = bias.values[v];
      const T* center = p.input.template pixel<const T>(tile.n, pixel) + c;
#pragma unroll
      for (int k = 0; k < int(kSafemTaps); ++k) {
        // Multiply one tap
        const int dy = k / 3 - 1, dx = k % 3 - 1;
        const bool inside = unsigned(y + dy) < unsigned(H) && unsigned(x + dx) < unsigned(W);
        const auto value =
            gpu::to_compute(gpu::load<kSafemPacket>(center + (dy * W + dx) * p.input.pixel_stride, inside));
        const auto weight = gpu::to_compute(gpu::load<kSafemPacket>(p.packed.depthwise + k * p.C + c));
#pragma unroll
        for (int v = 0; v < kSafemPacket; ++v) sum[v] += value.values[v] * weight.values[v];
      }
#pragma unroll
      for (int v = 0; v < kSafemPacket; ++v) sum[v] = sum[v] < 0 ? 0.0f : sum[v];  // keeps NaN
    }
    write_to_all(tile, features + (tile.own + own) * operand_pitch(p.C) + c, round_packet<T>(sum));
  }
}

// Prepares the taps of this block's pixels from their predicted offsets and mask, one item (a group of a pixel) per
// thread.
template <typename T>
GPU_DEVICE void prepare_own_taps(
    const SafemCall<T>& p, const SafemTile& tile, const float* predicted, CornerWeights<float>* corner_weights,
    SampledCell* cells) {
  constexpr int K = int(kSafemTaps);
  const int G = int(p.groups.divisor);
  for (int item = int(threadIdx.x); item < p.own_pixels * G; item += kSafemThreads) {
    const int own = p.groups.divide(item), g = item - own * G, pixel = tile.first + tile.own + own;
    if (pixel >= p.pixels) continue;
    const int y = p.width.divide(pixel), x = pixel - y * p.sampling.W;
    const float* row = predicted + own * result_pitch(3 * K * G);
    prepare_taps<K, /*kXFirst=*/false>(
        p.sampling, row + 2 * K * g, row + 2 * K * G + K * g, y, x, [&](int k, const Sample<float>& sample, float m) {
          if (sample.is_nan) m = NAN;  // NaN times any value of the corners, also 0, is NaN
          bilinear(sample.fraction_y, sample.fraction_x, m, corner_weights[item * K + k].weight);
          cells[item * K + k] = sample.cell;
        });
  }
}

// Samples this block's pixels with SDC. Calls write(own, c, values) for each packet of channels of each of its pixels.
template <typename T, typename Write>
GPU_DEVICE void sample_own_pixels(
    const SafemCall<T>& p, const SafemTile& tile, const CornerWeights<float>* corner_weights, const SampledCell* cells,
    const Write& write) {
  constexpr int K = int(kSafemTaps);
  const int packets = int(p.packets.divisor), G = int(p.groups.divisor);
  const int group_packets = packets / G, stride = int(p.input.pixel_stride), row_stride = p.sampling.W * stride;
  const T* image = p.input.template pixel<const T>(tile.n, 0);
  for (int work = int(threadIdx.x); work < p.own_pixels * packets; work += kSafemThreads) {
    const int own = p.packets.divide(work), packet = work - own * packets, item = own * G + packet / group_packets;
    if (tile.first + tile.own + own >= p.pixels) continue;
    float sum[kSafemPacket] = {};
#pragma unroll 3
    for (int k = 0; k < K; ++k) {
      // Load the four corners, and add them times their weights
      const CornerWeights<float> weights = corner_weights[item * K + k];
      const SampledCell cell = cells[item * K + k];
      const T* top_left = image + cell.top_left * stride + packet * kSafemPacket;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const auto value = gpu::to_compute(
            gpu::load<kSafemPacket>(
                top_left + corner / 2 * row_stride + corner % 2 * stride, cell.corners_inside >> corner & 1));
#pragma unroll
        for (int v = 0; v < kSafemPacket; ++v) sum[v] += weights.weight[corner] * value.values[v];
      }
    }
    write(own, packet * kSafemPacket, sum);
  }
}

// The first steps, up to z: calls write(own, c, values) for z of each packet of channels of this block's pixels. When
// it returns, other blocks may still read the first region of this block's shared memory, but no longer the second one.
template <typename T, int kMmaM, typename Write>
GPU_DEVICE void compute_samples(
    const SafemCall<T>& p, const SafemTile& tile, unsigned char* shared, const Write& write) {
  T* features = reinterpret_cast<T*>(shared);
  float* predicted = reinterpret_cast<float*>(shared + p.shared.predicted);
  auto* corner_weights = reinterpret_cast<CornerWeights<float>*>(shared + p.shared.second_region);
  auto* cells = reinterpret_cast<SampledCell*>(shared + p.shared.cells);
  const int predictions = 3 * int(kSafemTaps) * int(p.groups.divisor);

  // Wait until the other blocks have started, and convolve
  if (tile.size > 1) finish_step(tile);
  convolve_depthwise(p, tile, features);
  finish_step(tile);
  // Predict the offsets and the mask
  multiply_rows<T, kMmaM>(
      features, p.C, p.packed.predictor, p.packed.predictor_bias, predictions, tile.rank, tile.size,
      [&](int row, int column, const gpu::AlignedArray<float, 4>& values) {
        const int owner = row >> p.log2_own_pixels, own = row & (p.own_pixels - 1);
        write_to(tile, owner, predicted + own * result_pitch(predictions) + column, values);
      });
  finish_step(tile);
  // Sample
  prepare_own_taps(p, tile, predicted, corner_weights, cells);
  __syncthreads();
  sample_own_pixels(p, tile, corner_weights, cells, write);
}

// The last step: out = factor * softmax(logits) * x, or for two levels, factor * softmax(logits) * up + weight * x.
// `lanes` neighboring lanes compute one pixel.
template <typename T>
GPU_DEVICE void apply_gate(const SafemCall<T>& p, const SafemTile& tile, const float* logits) {
  const int lanes = 1 << p.log2_gate_lanes, lane = int(threadIdx.x) & (lanes - 1), W = p.sampling.W;
  const int packets = int(p.packets.divisor);
  for (int first = 0; first < p.own_pixels; first += kSafemThreads >> p.log2_gate_lanes) {
    const int own = first + (int(threadIdx.x) >> p.log2_gate_lanes), pixel = tile.first + tile.own + own;
    const bool exists = own < p.own_pixels && pixel < p.pixels;
    const float* row = logits + (exists ? own : 0) * result_pitch(p.C);
    // Find the largest logit
    // NOTE: the maximum skips NaN; exp carries them into the sum.
    float top = -INFINITY, sum = 0;
    for (int packet = lane; packet < packets; packet += lanes)
#pragma unroll
      for (int v = 0; v < kSafemPacket; ++v) {
        const float logit = row[packet * kSafemPacket + v];
        top = logit > top ? logit : top;
      }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      if (step < lanes) {
        const float other = __shfl_xor_sync(~0u, top, step);
        top = other > top ? other : top;
      }
    // Sum the exponentials
    for (int packet = lane; packet < packets; packet += lanes)
#pragma unroll
      for (int v = 0; v < kSafemPacket; ++v) sum += gpu::exponential<T>(row[packet * kSafemPacket + v] - top);
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      if (step < lanes) sum += __shfl_xor_sync(~0u, sum, step);
    if (!exists) continue;
    // Weight the features, and write back
    const float factor = p.factor * gpu::fast_reciprocal(sum);
    const int y = p.width.divide(pixel), x = pixel - y * W;
    for (int packet = lane; packet < packets; packet += lanes) {
      const int c = packet * kSafemPacket;
      const auto input = gpu::to_compute(gpu::load<kSafemPacket>(p.input.template pixel<const T>(tile.n, pixel) + c));
      float values[kSafemPacket];
#pragma unroll
      for (int v = 0; v < kSafemPacket; ++v) values[v] = factor * gpu::exponential<T>(row[c + v] - top);
      if (p.up.data == nullptr) {
#pragma unroll
        for (int v = 0; v < kSafemPacket; ++v) values[v] *= input.values[v];
      } else {
        const T* from = p.up.template pixel<const T>(tile.n, y / 2 * ((W + 1) / 2) + x / 2) + (y % 2 * 2 + x % 2) * p.C;
        const auto up = gpu::to_compute(gpu::load<kSafemPacket>(from + c));
        const auto weight = gpu::to_compute(gpu::load<kSafemPacket>(p.weight + int64_t(tile.n) * p.C + c));
#pragma unroll
        for (int v = 0; v < kSafemPacket; ++v)
          values[v] = values[v] * up.values[v] + weight.values[v] * input.values[v];
      }
      *reinterpret_cast<gpu::Packet<T>*>(p.out + (int64_t(tile.n) * p.pixels + pixel) * p.C + c) =
          round_packet<T>(values);
    }
  }
}

template <typename T, int kMmaM>
__global__ void __launch_bounds__(kSafemThreads, 2) safem_kernel(SafemCall<T> p) {
  GPU_DYNAMIC_SHARED(unsigned char, shared);
  const SafemTile tile(p);
  T *features = reinterpret_cast<T*>(shared), *hidden = reinterpret_cast<T*>(shared + p.shared.second_region);
  float* logits = reinterpret_cast<float*>(shared);
  compute_samples<T, kMmaM>(p, tile, shared, [&](int own, int c, const float (&z)[kSafemPacket]) {
    write_to_all(tile, features + (tile.own + own) * operand_pitch(p.C) + c, round_packet<T>(z));
  });
  finish_step(tile);
  // Expand the channels, and apply GELU
  multiply_rows<T, kMmaM>(
      features, p.C, p.packed.expand, p.packed.expand_bias, 2 * p.C, tile.rank, tile.size,
      [&](int row, int column, const gpu::AlignedArray<float, 4>& values) {
        gpu::AlignedArray<T, 4> activated;
#pragma unroll
        for (int i = 0; i < 4; ++i) activated.values[i] = gpu::from_compute<T>(gelu(values.values[i]));
        write_to_all(tile, hidden + row * operand_pitch(2 * p.C) + column, activated);
      });
  finish_step(tile);
  // Reduce them to the logits
  multiply_rows<T, kMmaM>(
      hidden, 2 * p.C, p.packed.reduce, p.packed.reduce_bias, p.C, tile.rank, tile.size,
      [&](int row, int column, const gpu::AlignedArray<float, 4>& values) {
        const int owner = row >> p.log2_own_pixels, own = row & (p.own_pixels - 1);
        write_to(tile, owner, logits + own * result_pitch(p.C) + column, values);
      });
  finish_step(tile);
  apply_gate(p, tile, logits);
}

}  // namespace
}  // namespace danet
