// SDC on CUDA devices.
//
// An item is a group of channels of one output pixel; items are numbered pixel * G + g, so that out is [items, D], D = C/G.
// A block first prepares the taps of its items, a thread an item, in shared memory: the softmax, the cells, what of them
// lies inside the image. Then its threads share the channels, a packet of 16 bytes each.
#include <tuple>

#include "../common/device.h"
#include "../common/ptx.cuh"
#include "sdc_check.h"

namespace danet {
namespace {

constexpr int kThreads = 128;
constexpr int kItems = 64;                  // of a block, fewer where their taps would not fit
constexpr int kSharedBytes = 48 * 1024;     // what every device gives a block without being asked

// Where one tap samples: the cell's top left pixel and which of its corners lie inside the image.
struct Place {
  int32_t pixel;     // y * W + x; what it means outside is not used
  uint32_t present;  // bit `corner`
};

template <typename A>
struct Sample {
  A y, x;  // in the cell, 0 to 1
  Place place;
  int32_t row;
  bool is_nan;
};

// The sample of tap (tap_y, tap_x) of the pixel whose window begins at (start_y, start_x); see sdc.h.
template <typename A>
GPU_DEVICE Sample<A> locate(const SdcParams& p, int tap_y, int tap_x, A start_y, A start_x, A dy, A dx) {
  const A scale = A(p.offset_scale);
  const int d_y = int(p.dilation[0]), d_x = int(p.dilation[1]);
  const int centre_y = d_y * int(p.kernel_size[0] - 1) / 2, centre_x = d_x * int(p.kernel_size[1] - 1) / 2;
  A y = (scale * A(tap_y * d_y - centre_y) + start_y) + scale * dy;
  A x = (scale * A(tap_x * d_x - centre_x) + start_x) + scale * dx;
  Sample<A> sample;
  sample.is_nan = y != y || x != x;
  // Far away is as good as just outside; a NaN fails the comparisons and goes there too.
  const bool near = y >= A(-2) && y <= A(p.H) && x >= A(-2) && x <= A(p.W);
  if (!near) y = x = A(-2);
  const A floor_y = floor(y), floor_x = floor(x);
  sample.y = y - floor_y, sample.x = x - floor_x;
  const int row = int(floor_y), column = int(floor_x), H = int(p.H), W = int(p.W);
  const bool top = row >= 0 && row < H, bottom = row + 1 >= 0 && row + 1 < H;
  const bool left = column >= 0 && column < W, right = column + 1 >= 0 && column + 1 < W;
  sample.row = row;
  sample.place.pixel = row * W + column;
  sample.place.present = uint32_t(top && left) | uint32_t(top && right) << 1 | uint32_t(bottom && left) << 2 |
                         uint32_t(bottom && right) << 3;
  return sample;
}

// store(k, sample, m) for the taps of one item at output pixel (y, x): offset [K, 2] and mask [K] are its own. With kTaps =
// 9 the window is 3x3 and all is in registers.
template <int kTaps, typename T, typename Store>
GPU_DEVICE void prepare_taps(
    const SdcParams& p, const T* __restrict__ offset, const T* __restrict__ mask, int64_t y, int64_t x,
    const Store& store) {
  using A = Compute<T>;
  const int K = kTaps > 0 ? kTaps : int(p.K), columns = kTaps > 0 ? 3 : int(p.kernel_size[1]);
  const A start_y = A(sdc_start(p, 0)) + A(y * p.stride[0]), start_x = A(sdc_start(p, 1)) + A(x * p.stride[1]);
  A logits[kTaps > 0 ? kTaps : 1];
  if (kTaps > 0) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) logits[k] = gpu::to_compute(mask[k]);
  }
  auto logit = [&](int k) { return kTaps > 0 ? logits[kTaps > 0 ? k : 0] : gpu::to_compute(mask[k]); };
  A top = 0, factor = 1;
  if (p.softmax) {
    top = logit(0);
#pragma unroll(kTaps > 0 ? kTaps : 1)
    for (int k = 1; k < K; ++k) top = logit(k) > top || logit(k) != logit(k) ? logit(k) : top;
    A sum = 0;
#pragma unroll(kTaps > 0 ? kTaps : 1)
    for (int k = 0; k < K; ++k) sum += exp(logit(k) - top);
    factor = 1 / sum;
  }
#pragma unroll(kTaps > 0 ? kTaps : 1)
  for (int k = 0; k < K; ++k) {
    const int tap = k + (p.remove_center && k >= K / 2 ? 1 : 0);
    const Sample<A> sample = locate<A>(
        p, tap / columns, tap % columns, start_y, start_x, gpu::to_compute(offset[2 * k]),
        gpu::to_compute(offset[2 * k + 1]));
    store(k, sample, p.softmax ? exp(logit(k) - top) * factor : logit(k));
  }
}

// The pixel of an item in its image and batch.
struct Pixel {
  int64_t n, y, x, i;  // i = y * W_out + x
  int g;

  GPU_DEVICE Pixel(const SdcParams& p, int64_t item) {
    const int64_t pixel = item / p.G;
    g = int(item - pixel * p.G);
    n = pixel / (p.H_out * p.W_out), i = pixel - n * (p.H_out * p.W_out);
    y = i / p.W_out, x = i - y * p.W_out;
  }
};

template <typename A>
struct alignas(4 * sizeof(A)) Corners {
  A weight[4];
};

template <typename T, int kVector>
GPU_DEVICE gpu::Group<T, kVector> load_if(bool present, const T* p) {
  gpu::Group<T, kVector> group{};
  if (present) group = *reinterpret_cast<const gpu::Group<T, kVector>*>(p);
  return group;
}

// out [items, D] = the sum over the taps. A thread reads 4 K packets of input and writes one of out; an item reads 3 K
// numbers of offset and mask once. Shared memory: items * K taps of 24 bytes (float). A packet a thread: fewer, wider loads.
// Floors (C = 64, G = 4, K = 9, bfloat16): 4 bytes an element of out to device memory (input, out, and 3 K G / C = 1.7
// numbers of offset and mask: 7.4 bytes), 144 bytes from the first-level cache, and 72 FMA + 72 conversions a pair of
// elements: issue binds, at 48 % of the copy bandwidth; 70 % in float32. Not yet measured on a GPU.
template <typename T, int kVector, int kTaps>
__global__ void __launch_bounds__(kThreads, 8) forward(
    SdcParams p, ImageView input /* [N, H*W, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    ImageView mask /* [N, H_out*W_out, G, K] */, T* __restrict__ out /* [items, D] */, int64_t items, int block_items) {
  using A = Compute<T>;
  const int K = kTaps > 0 ? kTaps : int(p.K), D = int(p.C / p.G), packets = D / kVector;
  const int64_t first = int64_t(blockIdx.x) * block_items;
  const int count = int(items - first < block_items ? items - first : block_items);
  GPU_DYNAMIC_SHARED(Corners<A>, corners);                                         // [block_items, K]
  int64_t* bases = reinterpret_cast<int64_t*>(corners + block_items * K);          // [block_items] in elements of input
  Place* places = reinterpret_cast<Place*>(bases + block_items);                   // [block_items, K]

  for (int item = int(threadIdx.x); item < count; item += kThreads) {
    const Pixel at(p, first + item);
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

  const int64_t step[4] = {0, input.pixel_stride, p.W * input.pixel_stride, (p.W + 1) * input.pixel_stride};
  for (int unit = int(threadIdx.x); unit < count * packets; unit += kThreads) {
    const int item = unit / packets, packet = unit - item * packets;
    const T* image = static_cast<const T*>(input.data) + bases[item] + packet * kVector;
    A total[kVector] = {};
#pragma unroll(kTaps > 0 ? 2 : 1)
    for (int k = 0; k < K; ++k) {
      const Corners<A> weights = corners[item * K + k];
      const Place place = places[item * K + k];
      const T* cell = image + place.pixel * input.pixel_stride;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const auto x = load_if<T, kVector>(place.present >> corner & 1, cell + step[corner]);
#pragma unroll
        for (int v = 0; v < kVector; ++v) total[v] += weights.weight[corner] * gpu::to_compute(x.values[v]);
      }
    }
    gpu::Group<T, kVector> result;
#pragma unroll
    for (int v = 0; v < kVector; ++v) result.values[v] = gpu::from_compute<T>(total[v]);
    *reinterpret_cast<gpu::Group<T, kVector>*>(out + (first + item) * D + packet * kVector) = result;
  }
}

// Prepared taps of backward.
template <typename A>
struct alignas(4 * sizeof(A)) BackwardTap {
  A y, x, m, grad_m;
};

GPU_DEVICE void add(double* p, const double (&v)[1]) { atomicAdd(p, v[0]); }
GPU_DEVICE void add(float* p, const float (&v)[1]) { atomicAdd(p, v[0]); }
GPU_DEVICE void add(float* p, const float (&v)[4]) { gpu::add_atomically(p, v); }
GPU_DEVICE void add(float* p, const float (&v)[8]) {
  const float low[4] = {v[0], v[1], v[2], v[3]}, high[4] = {v[4], v[5], v[6], v[7]};
  gpu::add_atomically(p, low);
  gpu::add_atomically(p + 4, high);
}

// grad_offset and grad_mask; with kScatter also grad_input, by atomic additions to global memory. `lanes` neighbouring
// lanes of a warp share an item, a packet of channels each, and sum their products by shuffles: no atomics there, and the
// softmax's backward needs no second pass over the image. A lane reads 4 K packets of input and one of grad_output, and
// with kScatter adds 4 K packets of float32. Shared memory: items * K taps of 24 bytes (float).
// Floors (as above): those 4 K additions of 4 bytes an element, which the second-level cache does: 11 % of the copy
// bandwidth. Not yet measured on a GPU.
template <typename T, int kVector, int kTaps, bool kScatter>
__global__ void __launch_bounds__(kThreads, 5) backward(
    SdcParams p, ImageView grad_output /* [N, H_out*W_out, C] */, ImageView input /* [N, H*W, C] */,
    ImageView offset /* [N, H_out*W_out, G, K, 2] */, ImageView mask /* [N, H_out*W_out, G, K] */,
    Compute<T>* __restrict__ grad_input /* [N, H*W, C] */, T* __restrict__ grad_offset /* [items, K, 2] */,
    T* __restrict__ grad_mask /* [items, K] */, int64_t items, int block_items, int lanes) {
  using A = Compute<T>;
  using Packet = gpu::Group<T, kVector>;
  const int K = kTaps > 0 ? kTaps : int(p.K), D = int(p.C / p.G), packets = D / kVector;
  const int64_t first = int64_t(blockIdx.x) * block_items;
  const int count = int(items - first < block_items ? items - first : block_items);
  GPU_DYNAMIC_SHARED(BackwardTap<A>, taps);                                  // [block_items, K]
  Place* places = reinterpret_cast<Place*>(taps + block_items * K);          // [block_items, K]

  for (int item = int(threadIdx.x); item < count; item += kThreads) {
    const Pixel at(p, first + item);
    prepare_taps<kTaps>(
        p, offset.pixel<const T>(at.n, at.i) + 2 * at.g * K, mask.pixel<const T>(at.n, at.i) + at.g * K, at.y, at.x,
        [&](int k, const Sample<A>& sample, A m) {
          taps[item * K + k] = {sample.y, sample.x, m, A(0)};
          places[item * K + k] = sample.place;
        });
  }
  __syncthreads();

  const int64_t row_stride = p.W * input.pixel_stride, grad_row_stride = p.W * p.C;
  const int lane = int(threadIdx.x) % lanes, a_pass = kThreads / lanes;
  const int passes = (count + a_pass - 1) / a_pass;  // of all threads: the shuffles need every lane
  for (int pass = 0; pass < passes; ++pass) {
    const int item = pass * a_pass + int(threadIdx.x) / lanes;
    const bool active = item < count;
    const Pixel at(p, first + (active ? item : 0));
    const T* grad = grad_output.pixel<const T>(at.n, at.i) + at.g * D;
    const T* image = input.pixel<const T>(at.n, 0) + at.g * D;
    A* grad_image = grad_input + at.n * p.H * p.W * p.C + at.g * D;
    const Packet own = load_if<T, kVector>(active && lane < packets, grad + lane * kVector);
    A mean = 0;
#pragma unroll 1
    for (int k = 0; k < K; ++k) {
      BackwardTap<A> tap{};
      Place place{0, 0};
      if (active) tap = taps[item * K + k], place = places[item * K + k];
      A weight[4], dot[4] = {};
      bilinear(tap.y, tap.x, tap.m, weight);
      for (int packet = lane; active && packet < packets; packet += lanes) {
        const Packet g = packet == lane ? own : load_if<T, kVector>(true, grad + packet * kVector);
        const T* cell = image + place.pixel * input.pixel_stride + packet * kVector;
        A* grad_cell = grad_image + place.pixel * p.C + packet * kVector;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const bool present = place.present >> corner & 1;
          const auto x = load_if<T, kVector>(present, cell + corner / 2 * row_stride + corner % 2 * input.pixel_stride);
          A added[kVector];
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
            dot[corner] += gpu::to_compute(g.values[v]) * gpu::to_compute(x.values[v]);
            added[v] = weight[corner] * gpu::to_compute(g.values[v]);
          }
          if (kScatter && present) add(grad_cell + corner / 2 * grad_row_stride + corner % 2 * p.C, added);
        }
      }
      A grad_m, grad_y, grad_x;
      bilinear_gradients(tap.y, tap.x, tap.m, dot, grad_m, grad_y, grad_x);
      for (int step = lanes / 2; step > 0; step /= 2) {
        grad_m += __shfl_xor_sync(~0u, grad_m, step);
        grad_y += __shfl_xor_sync(~0u, grad_y, step);
        grad_x += __shfl_xor_sync(~0u, grad_x, step);
      }
      mean += tap.m * grad_m;
      if (active && lane == k % lanes) {
        taps[item * K + k].grad_m = grad_m;
        T* pair = grad_offset + ((first + item) * K + k) * 2;
        pair[0] = gpu::from_compute<T>(A(p.offset_scale) * grad_y);
        pair[1] = gpu::from_compute<T>(A(p.offset_scale) * grad_x);
      }
    }
    // The lane that wrote a tap's gradient finishes it.
    for (int k = lane; active && k < K; k += lanes) {
      const BackwardTap<A> tap = taps[item * K + k];
      grad_mask[(first + item) * K + k] =
          gpu::from_compute<T>(p.softmax ? tap.m * (tap.grad_m - mean) : tap.grad_m);
    }
  }
}

// reach [N * H_out, 2] = the first and last input row that an output row touches, clipped to the image (first > last:
// none). A block an output row. Reads the offsets once; only the deterministic path needs it.
template <typename T>
__global__ void __launch_bounds__(kThreads) find_reach(
    SdcParams p, ImageView offset /* [N, H_out*W_out, G, K, 2] */, int32_t* __restrict__ reach /* [N * H_out, 2] */) {
  using A = Compute<T>;
  GPU_SHARED(ends, int32_t[2]);
  if (threadIdx.x == 0) ends[0] = int32_t(p.H), ends[1] = -1;
  __syncthreads();
  const int64_t n = blockIdx.x / p.H_out, y = blockIdx.x - n * p.H_out;
  const A start_y = A(sdc_start(p, 0)) + A(y * p.stride[0]), start_x = A(sdc_start(p, 1));
  int32_t first = int32_t(p.H), last = -1;
  for (int64_t i = threadIdx.x; i < p.W_out * p.G * p.K; i += kThreads) {
    const int64_t x = i / (p.G * p.K), j = i - x * (p.G * p.K), k = j % p.K;
    const int tap = int(k) + (p.remove_center && k >= p.K / 2 ? 1 : 0), columns = int(p.kernel_size[1]);
    const T* pair = offset.pixel<const T>(n, y * p.W_out + x) + 2 * j;
    const Sample<A> sample = locate<A>(
        p, tap / columns, tap % columns, start_y, start_x + A(x * p.stride[1]), gpu::to_compute(pair[0]),
        gpu::to_compute(pair[1]));
    if (sample.place.present & 3) first = min(first, sample.row), last = max(last, sample.row);
    if (sample.place.present & 12) first = min(first, sample.row + 1), last = max(last, sample.row + 1);
  }
  atomicMin(&ends[0], first);
  atomicMax(&ends[1], last);
  __syncthreads();
  if (threadIdx.x < 2) reach[2 * int64_t(blockIdx.x) + threadIdx.x] = ends[threadIdx.x];
}

// grad_input without atomics: a warp owns one group of one input row and adds what reaches it, in the order of the output
// pixels. It looks at those output rows that touch its row, and prepares the taps of some pixels at a time (at most 32), a
// lane a pixel. The same bits in every run, for more reading: every tap is prepared for each row that its row touches.
template <typename T, int kVector>
__global__ void __launch_bounds__(32, 16) backward_in_order(
    SdcParams p, ImageView grad_output /* [N, H_out*W_out, C] */, ImageView offset /* [N, H_out*W_out, G, K, 2] */,
    ImageView mask /* [N, H_out*W_out, G, K] */, const int32_t* __restrict__ reach /* [N * H_out, 2] */,
    Compute<T>* __restrict__ grad_input /* [N, H*W, C], zeros */, int pixels) {
  using A = Compute<T>;
  const int K = int(p.K), D = int(p.C / p.G), packets = D / kVector, lane = int(threadIdx.x);
  GPU_DYNAMIC_SHARED(Corners<A>, corners);                             // [pixels, K]
  Place* places = reinterpret_cast<Place*>(corners + pixels * K);      // [pixels, K]
  const int64_t row_index = blockIdx.x / p.G, n = row_index / p.H;
  const int g = int(blockIdx.x - row_index * p.G), row = int(row_index - n * p.H), W = int(p.W);
  A* grad_row = grad_input + row_index * p.W * p.C + g * D;
  for (int64_t y = 0; y < p.H_out; ++y) {
    const int32_t* ends = reach + 2 * (n * p.H_out + y);
    if (row < ends[0] || row > ends[1]) continue;
    for (int64_t x = 0; x < p.W_out; x += pixels) {
      const int count = int(p.W_out - x < pixels ? p.W_out - x : pixels);
      const int64_t i = y * p.W_out + x + lane;
      if (lane < count)
        prepare_taps<0>(
            p, offset.pixel<const T>(n, i) + 2 * g * K, mask.pixel<const T>(n, i) + g * K, y, x + lane,
            [&](int k, const Sample<A>& sample, A m) {
              bilinear(sample.y, sample.x, m, corners[lane * K + k].weight);
              places[lane * K + k] = sample.place;
            });
      __syncwarp();
      for (int j = 0; j < count * K; ++j) {
        const Place place = places[j];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const int pixel = place.pixel + corner / 2 * W + corner % 2, column = pixel - row * W;
          if (!(place.present >> corner & 1) || column < 0 || column >= W) continue;
          const T* grad = grad_output.pixel<const T>(n, i - lane + j / K) + g * D;
          for (int packet = lane; packet < packets; packet += 32) {
            const auto values = load_if<T, kVector>(true, grad + packet * kVector);
            A* to = grad_row + column * p.C + packet * kVector;
#pragma unroll
            for (int v = 0; v < kVector; ++v) to[v] += corners[j].weight[corner] * gpu::to_compute(values.values[v]);
          }
        }
      }
      __syncwarp();
    }
  }
}

// --- host -------------------------------------------------------------------------------------------------------------

SdcParams check(
    const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups, const Sizes& kernel_size,
    const Sizes& stride, const Sizes& padding, const Sizes& dilation, double offset_scale, bool softmax,
    bool remove_center) {
  const SdcParams p = check_sdc(
      input, offset, mask, groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center);
  DANET_CHECK((p.H + 4) * (p.W + 4) < int64_t(1) << 31, "sdc: the CUDA kernels take images of less than 2^31 pixels");
  DANET_CHECK(p.K <= kMaxTaps, "sdc: the CUDA kernels take at most ", kMaxTaps, " taps");
  return p;
}

// Bytes of shared memory for an item's taps and, forward, its place in the input.
template <typename A>
int item_bytes(const SdcParams& p) {
  return int(p.K) * int(4 * sizeof(A) + sizeof(Place)) + int(sizeof(int64_t));
}

template <typename A>
int items_of_a_block(const SdcParams& p) {
  return std::max(1, std::min(kItems, kSharedBytes / item_bytes<A>(p)));
}

bool is_3x3(const SdcParams& p) { return p.kernel_size[0] == 3 && p.kernel_size[1] == 3 && !p.remove_center; }

// Whether packets of kVector of the image's group are aligned everywhere.
template <typename T, int kVector>
bool fits_packets(const SdcParams& p, const ImageView& image) {
  return p.C / p.G % kVector == 0 && image.pixel_stride % kVector == 0 && image.image_stride % kVector == 0 &&
         reinterpret_cast<uintptr_t>(image.data) % (sizeof(T) * kVector) == 0;
}

// body(type, vector, taps) with what the kernels are specialised for: packets of 16 bytes (never for float64), 3x3.
template <typename T, typename Body>
void specialise(const SdcParams& p, bool packets_fit, const Body& body) {
  constexpr int kPacket = gpu::Packet<T>::kSize;
  if constexpr (sizeof(T) < 8) {
    if (packets_fit && is_3x3(p)) return body(T{}, Constant<kPacket>{}, Constant<9>{});
    if (packets_fit) return body(T{}, Constant<kPacket>{}, Constant<0>{});
  }
  body(T{}, Constant<1>{}, Constant<0>{});
}

Tensor sdc(
    const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups, Sizes kernel_size, Sizes stride,
    Sizes padding, Sizes dilation, double offset_scale, bool softmax, bool remove_center) {
  const SdcParams p = check(
      input, offset, mask, groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center);
  const OnDevice here(input);
  const Image x(input), offsets(offset), masks(mask), out(empty_image(input, {p.N, p.C, p.H_out, p.W_out}));
  const int64_t items = p.N * p.H_out * p.W_out * p.G;
  if (items == 0) return out.tensor;
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const int block_items = items_of_a_block<A>(p);
    specialise<T>(p, fits_packets<T, gpu::Packet<T>::kSize>(p, x.view), [&](auto, auto vector, auto taps) {
      gpu::launch(
          "sdc", forward<T, decltype(vector)::value, decltype(taps)::value>,
          {blocks_for("sdc", items, block_items), kThreads, size_t(block_items * item_bytes<A>(p)), here.stream()}, p,
          x.view, offsets.view, masks.view, static_cast<T*>(out.view.data), items, block_items);
    });
  });
  return out.tensor;
}

// Lanes of a warp for an item: as many as it has packets, a power of two.
int lanes_of(int64_t packets) {
  int lanes = 1;
  while (lanes < 32 && lanes < packets) lanes *= 2;
  return lanes;
}

std::tuple<Tensor, Tensor, Tensor> sdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups,
    Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation, double offset_scale, bool softmax,
    bool remove_center, bool deterministic) {
  const SdcParams p = check(
      input, offset, mask, groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center);
  check_like("sdc", "grad_output", grad_output, input, {p.N, p.C, p.H_out, p.W_out});
  const OnDevice here(input);
  const Image grad_out(grad_output), x(input), offsets(offset), masks(mask);
  const Image grad_offset(empty_image(offset, offset.sizes())), grad_mask(empty_image(mask, mask.sizes()));
  const bool is_double = input.scalar_type() == ScalarType::Double;
  Tensor grad_input = torch::stable::empty(
      input.sizes(), is_double ? ScalarType::Double : ScalarType::Float, std::nullopt, input.device(), std::nullopt,
      MemoryFormat::ChannelsLast);
  torch::stable::zero_(grad_input);
  const int64_t items = p.N * p.H_out * p.W_out * p.G;
  if (items > 0)
    with_type(input, [&](auto type) {
      using T = decltype(type);
      using A = Compute<T>;
      constexpr int kPacket = gpu::Packet<T>::kSize;
      A* sums = static_cast<A*>(grad_input.mutable_data_ptr());
      const int block_items = items_of_a_block<A>(p);
      const bool packets_fit = fits_packets<T, kPacket>(p, x.view) && fits_packets<T, kPacket>(p, grad_out.view);
      specialise<T>(p, packets_fit, [&](auto, auto vector, auto taps) {
        constexpr int kVector = decltype(vector)::value, kTaps = decltype(taps)::value;
        gpu::launch(
            "sdc", deterministic ? backward<T, kVector, kTaps, false> : backward<T, kVector, kTaps, true>,
            {blocks_for("sdc", items, block_items), kThreads, size_t(block_items * item_bytes<A>(p)), here.stream()},
            p, grad_out.view, x.view, offsets.view, masks.view, sums, static_cast<T*>(grad_offset.view.data),
            static_cast<T*>(grad_mask.view.data), items, block_items, lanes_of(p.C / p.G / kVector));
        if (!deterministic) return;
        Tensor reach = torch::stable::empty(
            {p.N * p.H_out, 2}, ScalarType::Int, std::nullopt, input.device(), std::nullopt, std::nullopt);
        int32_t* rows = static_cast<int32_t*>(reach.mutable_data_ptr());
        const int pixels = std::min(32, block_items);
        gpu::launch(
            "sdc", find_reach<T>, {blocks_for("sdc", p.N * p.H_out, 1), kThreads, 0, here.stream()}, p, offsets.view,
            rows);
        gpu::launch(
            "sdc", backward_in_order<T, kVector>,
            {blocks_for("sdc", p.N * p.H * p.G, 1), 32, size_t(pixels * item_bytes<A>(p)), here.stream()}, p,
            grad_out.view, offsets.view, masks.view, rows, sums, pixels);
      });
    });
  if (grad_input.scalar_type() != input.scalar_type()) grad_input = torch::stable::to(grad_input, input.scalar_type());
  return {grad_input, grad_offset.tensor, grad_mask.tensor};
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("sdc", TORCH_BOX(&sdc));
  library.impl("sdc_backward", TORCH_BOX(&sdc_backward));
}

}  // namespace danet
