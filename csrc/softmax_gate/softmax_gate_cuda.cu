// softmax_gate and softmax_gate_backward on CUDA devices. If the channels of a pixel fit into the registers of a warp,
// one kernel reads everything once. Otherwise a block makes three passes over a pixel; the cache serves the last two.
#include <cmath>
#include <initializer_list>
#include <tuple>

#include "../common/device.h"
#include "../common/ptx.cuh"
#include "softmax_gate_check.h"

namespace danet {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The tensors of a call, each [N, P, C]. Forward uses only input, logits and result; it passes `input` as grad_output
// and `out` as grad_logits.
struct SoftmaxGateViews {
  ImageView grad_output, input, logits, result /* out or grad_input */, grad_logits;
};

// The maximum of a and b; a NaN in b is ignored. The result is still NaN for NaN logits, because exp(NaN) enters the
// sum.
template <typename A>
GPU_DEVICE A max_ignore_nan(A a, A b) {
  return b > a ? b : a;
}

template <typename A>
GPU_DEVICE A add(A a, A b) {
  return a + b;
}

// Reduces over aligned groups of `lanes` lanes (a power of two, uniform in the warp); every lane gets the result of its
// group.
template <typename A, typename Combine>
GPU_DEVICE A reduce_lanes(int lanes, A value, const Combine& combine) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    if (step < lanes) value = combine(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

// Reduces over the thread block. `parts` is shared memory that no other call uses.
template <typename A, typename Combine>
GPU_DEVICE A reduce_block(A (&parts)[kWarps], A value, const Combine& combine) {
  value = reduce_lanes(32, value, combine);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) value = combine(value, parts[w]);
  return value;
}

// Returns the sum of exps * grad * x over kSize channels.
template <typename T, int kSize>
GPU_DEVICE Compute<T> sum_products(
    const Compute<T> (&exps)[kSize], const gpu::AlignedArray<T, kSize>& grad, const gpu::AlignedArray<T, kSize>& x) {
  const auto g = gpu::to_compute(grad), value = gpu::to_compute(x);
  Compute<T> sum = 0;
#pragma unroll
  for (int v = 0; v < kSize; ++v) sum += exps[v] * (g.values[v] * value.values[v]);
  return sum;
}

// Writes the results of kSize channels from channel c on. exps * factor is C * s, where s is the softmax; mean is the
// sum of s * grad * x over all channels.
template <bool kBackward, typename T, int kSize>
GPU_DEVICE void write_results(
    const SoftmaxGateViews& t, gpu::Pixel pixel, int c, const Compute<T> (&exps)[kSize], Compute<T> factor,
    Compute<T> mean, const gpu::AlignedArray<T, kSize>& grad, const gpu::AlignedArray<T, kSize>& x) {
  gpu::AlignedArray<T, kSize> result, grad_logits;
  const auto grads = gpu::to_compute(grad), values = gpu::to_compute(x);
#pragma unroll
  for (int v = 0; v < kSize; ++v) {
    const Compute<T> weight = exps[v] * factor, value = values.values[v];
    if constexpr (kBackward) {
      const Compute<T> g = grads.values[v];
      result.values[v] = gpu::from_compute<T>(weight * g);
      grad_logits.values[v] = gpu::from_compute<T>(weight * (g * value - mean));
    } else {
      result.values[v] = gpu::from_compute<T>(value * weight);
    }
  }
  *reinterpret_cast<gpu::AlignedArray<T, kSize>*>(t.result.pixel<T>(pixel.n, pixel.i) + c) = result;
  if constexpr (kBackward)
    *reinterpret_cast<gpu::AlignedArray<T, kSize>*>(t.grad_logits.pixel<T>(pixel.n, pixel.i) + c) = grad_logits;
}

// `lanes` neighbouring threads compute one pixel. Each holds kRows vectors of kSize channels, which are `lanes` vectors
// apart. Every input is read once and every output is written once, with coalesced accesses. The values of a pixel stay
// in registers, and shuffles reduce them.
// Roofline, with s = element size: Forward moves 3 * s bytes per channel and computes 15 flops, one exponential
// included. Backward moves 5 * s bytes and computes 25 flops. For N = 32, C = 64, 128x160 pixels and float32, they move
// 0.50 GB and 0.84 GB. Memory is the bottleneck (docs/performance_model.md). Not yet measured on a GPU.
template <bool kBackward, typename T, int kSize, int kRows>
__global__ void __launch_bounds__(kThreads)
    softmax_gate_in_registers(SoftmaxGateParams p, int log2_lanes, SoftmaxGateViews t /* each [N, P, C] */) {
  using A = Compute<T>;
  const int lanes = 1 << log2_lanes, lane = int(threadIdx.x) & (lanes - 1), C = int(p.C);
  const int64_t pixel_index = int64_t(blockIdx.x) * (kThreads >> log2_lanes) + (int(threadIdx.x) >> log2_lanes);
  const bool exists = pixel_index < p.N * p.P;
  const gpu::Pixel pixel = gpu::split_pixel_index(p.N, p.P, exists ? pixel_index : 0);
  // Load the pixel
  gpu::AlignedArray<T, kSize> x[kRows], grad[kRows], logits[kRows];
  bool valid[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int c = (r * lanes + lane) * kSize;
    valid[r] = exists && c < C;
    logits[r] = gpu::load<kSize>(t.logits.pixel<const T>(pixel.n, pixel.i) + c, valid[r]);
    x[r] = gpu::load<kSize>(t.input.pixel<const T>(pixel.n, pixel.i) + c, valid[r]);
    if constexpr (kBackward) grad[r] = gpu::load<kSize>(t.grad_output.pixel<const T>(pixel.n, pixel.i) + c, valid[r]);
  }

  // Reduce the maximum of the logits
  A exps[kRows][kSize], top = -A(INFINITY), sum = 0, products = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto values = gpu::to_compute(logits[r]);
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      exps[r][v] = valid[r] ? values.values[v] : -A(INFINITY);
      top = max_ignore_nan(top, exps[r][v]);
    }
  }
  top = reduce_lanes(lanes, top, max_ignore_nan<A>);
  // Reduce the sum of the exponentials and, in backward, of their products with g * x
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int v = 0; v < kSize; ++v) sum += exps[r][v] = gpu::exponential<T>(exps[r][v] - top);
    if constexpr (kBackward) products += sum_products(exps[r], grad[r], x[r]);
  }
  sum = reduce_lanes(lanes, sum, add<A>);
  if constexpr (kBackward) products = reduce_lanes(lanes, products, add<A>);
  // Write back
  const A factor = A(C) / sum;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (valid[r])
      write_results<kBackward>(t, pixel, (r * lanes + lane) * kSize, exps[r], factor, products / sum, grad[r], x[r]);
}

// For pixels with more channels than the registers of a warp hold. A thread block computes one pixel, and a thread
// every 256th vector of kSize channels. It reads the logits three times and, in backward, the other inputs twice. The
// caches hold the pixel between the passes (24 KB per tensor for 6144 float32 channels, 3 to 8 blocks per
// multiprocessor). Shared memory holds the warps' parts of three reductions.
// Roofline: as above, but cache misses add traffic; we expect 75 % of the copy bandwidth. Not yet measured on a GPU.
template <bool kBackward, typename T, int kSize>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 3)
    softmax_gate_multipass(SoftmaxGateParams p, SoftmaxGateViews t /* each [N, P, C] */) {
  using A = Compute<T>;
  GPU_SHARED(parts, A[3][kWarps]);
  const gpu::Pixel pixel = gpu::split_pixel_index(p.N, p.P, blockIdx.x);
  const int C = int(p.C), first = int(threadIdx.x) * kSize, step = kThreads * kSize;
  const T *logits = t.logits.pixel<const T>(pixel.n, pixel.i), *x = t.input.pixel<const T>(pixel.n, pixel.i);
  const T* grad = kBackward ? t.grad_output.pixel<const T>(pixel.n, pixel.i) : x;
  A top = -A(INFINITY), sum = 0, products = 0;
  // Pass 1: reduce the maximum of the logits
#pragma unroll 4
  for (int c = first; c < C; c += step) {
    const auto values = gpu::to_compute(gpu::load<kSize>(logits + c));
#pragma unroll
    for (int v = 0; v < kSize; ++v) top = max_ignore_nan(top, values.values[v]);
  }
  top = reduce_block(parts[0], top, max_ignore_nan<A>);

  const auto exponentials = [&](A(&exps)[kSize], int c) {
    const auto values = gpu::to_compute(gpu::load<kSize>(logits + c));
#pragma unroll
    for (int v = 0; v < kSize; ++v) exps[v] = gpu::exponential<T>(values.values[v] - top);
  };
  // Pass 2: reduce the sum of the exponentials and, in backward, of their products with g * x
#pragma unroll 2
  for (int c = first; c < C; c += step) {
    A exps[kSize];
    exponentials(exps, c);
#pragma unroll
    for (int v = 0; v < kSize; ++v) sum += exps[v];
    if constexpr (kBackward) products += sum_products(exps, gpu::load<kSize>(grad + c), gpu::load<kSize>(x + c));
  }
  sum = reduce_block(parts[1], sum, add<A>);
  if constexpr (kBackward) products = reduce_block(parts[2], products, add<A>);
  // Pass 3: recompute the exponentials, and write back
  const A factor = A(C) / sum;
#pragma unroll 2
  for (int c = first; c < C; c += step) {
    A exps[kSize];
    exponentials(exps, c);
    write_results<kBackward>(
        t, pixel, c, exps, factor, products / sum, gpu::load<kSize>(grad + c), gpu::load<kSize>(x + c));
  }
}

// --- host ------------------------------------------------------------------------------------------------------------

template <bool kBackward, typename T, int kSize>
void launch_kernel(const SoftmaxGateParams& p, const SoftmaxGateViews& t, gpu::Stream stream) {
  const int64_t vectors = p.C / kSize, pixels = p.N * p.P;
  const auto with_rows = [&](auto rows) {
    const int log2_lanes = log2_lanes_per_item(vectors);
    gpu::launch(
        "softmax_gate", softmax_gate_in_registers<kBackward, T, kSize, decltype(rows)::value>,
        {blocks_for("softmax_gate", pixels, kThreads >> log2_lanes), kThreads, 0, stream}, p, log2_lanes, t);
  };
  if (vectors <= 32) return with_rows(Constant<1>{});
  if (vectors <= 64) return with_rows(Constant<2>{});
  if (vectors <= 128) return with_rows(Constant<4>{});
  DANET_CHECK(p.C < int64_t(1) << 30, "softmax_gate: too many channels");
  gpu::launch(
      "softmax_gate", softmax_gate_multipass<kBackward, T, kSize>,
      {blocks_for("softmax_gate", pixels, 1), kThreads, 0, stream}, p, t);
}

// Launches the kernel with packets of 16 bytes if all tensors are aligned, else with one channel at a time.
template <bool kBackward>
void dispatch(const Tensor& input, SoftmaxGateParams p, const SoftmaxGateViews& t, gpu::Stream stream) {
  const std::initializer_list<ImageView> views = {t.grad_output, t.input, t.logits, t.result, t.grad_logits};
  p = merge_images(p, views);
  with_type(input, [&](auto type) {
    using T = decltype(type);
    constexpr int kSize = gpu::Packet<T>::kSize;
    if (fits_packets<T>(p.C, views)) return launch_kernel<kBackward, T, kSize>(p, t, stream);
    launch_kernel<kBackward, T, 1>(p, t, stream);
  });
}

Tensor softmax_gate(const Tensor& input, const Tensor& logits) {
  const SoftmaxGateParams p = check_softmax_gate(input, logits);
  const DeviceGuard device_guard(input);
  const Image x(input), weights(logits), out(empty_image(input, input.sizes()));
  if (p.N * p.P * p.C > 0)
    dispatch</*kBackward=*/false>(input, p, {x.view, x.view, weights.view, out.view, out.view}, device_guard.stream());
  return out.tensor;
}

std::tuple<Tensor, Tensor> softmax_gate_backward(const Tensor& grad_output, const Tensor& input, const Tensor& logits) {
  const SoftmaxGateParams p = check_softmax_gate(input, logits);
  check_like("softmax_gate", "grad_output", grad_output, input, input.sizes());
  const DeviceGuard device_guard(input);
  const Image grad(grad_output), x(input), weights(logits);
  const Image grad_input(empty_image(input, input.sizes())), grad_logits(empty_image(input, input.sizes()));
  if (p.N * p.P * p.C > 0)
    dispatch</*kBackward=*/true>(
        input, p, {grad.view, x.view, weights.view, grad_input.view, grad_logits.view}, device_guard.stream());
  return {grad_input.tensor, grad_logits.tensor};
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("softmax_gate", TORCH_BOX(&softmax_gate));
  library.impl("softmax_gate_backward", TORCH_BOX(&softmax_gate_backward));
}

}  // namespace danet
