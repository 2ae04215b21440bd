// softmax_gate on CUDA devices. A pixel's channels stay in the registers of a warp or of a part of it where they fit,
// else a block goes through the pixel three times, of which the cache serves the last two.
#include <cmath>
#include <initializer_list>
#include <tuple>

#include "../common/device.h"
#include "../common/ptx.cuh"
#include "softmax_gate_check.h"

namespace danet {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The tensors of a call, each [N, P, C]. Forward has three: input and out stand for the other two.
struct Views {
  ImageView grad_output, input, logits, result /* out or grad_input */, grad_logits;
};

// NaN is passed over here: exp makes it part of every sum.
template <typename A>
GPU_DEVICE A larger(A a, A b) {
  return b > a ? b : a;
}

template <typename A>
GPU_DEVICE A plus(A a, A b) {
  return a + b;
}

// combine over groups of `lanes` lanes (a power of two, the same in the whole warp); all of them get it.
template <typename A, typename Combine>
GPU_DEVICE A over_lanes(int lanes, A value, const Combine& combine) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    if (step < lanes) value = combine(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

// The same over a block; `parts` is shared memory that nothing else uses.
template <typename A, typename Combine>
GPU_DEVICE A over_block(A (&parts)[kWarps], A value, const Combine& combine) {
  value = over_lanes(32, value, combine);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) value = combine(value, parts[w]);
  return value;
}

template <typename T, int kSize>
GPU_DEVICE Compute<T> sum_products(
    const Compute<T> (&exps)[kSize], const gpu::AlignedArray<T, kSize>& grad, const gpu::AlignedArray<T, kSize>& x) {
  const auto g = gpu::to_compute(grad), value = gpu::to_compute(x);
  Compute<T> sum = 0;
#pragma unroll
  for (int v = 0; v < kSize; ++v) sum += exps[v] * (g.values[v] * value.values[v]);
  return sum;
}

// Writes the results of kSize channels from c on. C * s is exps * factor, `mean` the sum of s * g * x.
template <bool kBackward, typename T, int kSize>
GPU_DEVICE void store(
    const Views& t, gpu::Pixel at, int c, const Compute<T> (&exps)[kSize], Compute<T> factor, Compute<T> mean,
    const gpu::AlignedArray<T, kSize>& grad, const gpu::AlignedArray<T, kSize>& x) {
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
  *reinterpret_cast<gpu::AlignedArray<T, kSize>*>(t.result.pixel<T>(at.n, at.i) + c) = result;
  if constexpr (kBackward)
    *reinterpret_cast<gpu::AlignedArray<T, kSize>*>(t.grad_logits.pixel<T>(at.n, at.i) + c) = grad_logits;
}

// `lanes` threads side by side compute a pixel, each kRows groups of kSize channels, `lanes` groups apart. Every input
// is read once, every output written once, in whole lines; all of a pixel is in registers, shuffles sum. Roofline: 3
// (backward 5) * s bytes a channel of s bytes against 15 (25) flops and an exponential (N32 C64 128x160 float32: 0.50,
// 0.84 GB): memory binds, over 90 % of the copy bandwidth expected. Not yet measured on a GPU.
template <bool kBackward, typename T, int kSize, int kRows>
__global__ void __launch_bounds__(kThreads) in_registers(SoftmaxGateParams p, int lanes, Views t /* each [N, P, C] */) {
  using A = Compute<T>;
  const int lane = int(threadIdx.x) % lanes, C = int(p.C);
  const int64_t pixel = int64_t(blockIdx.x) * (kThreads / lanes) + int(threadIdx.x) / lanes;
  const bool exists = pixel < p.N * p.P;
  const gpu::Pixel at = gpu::locate(p.N, p.P, exists ? pixel : 0);
  gpu::AlignedArray<T, kSize> x[kRows], grad[kRows], logits[kRows];
  bool valid[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int c = (r * lanes + lane) * kSize;
    valid[r] = exists && c < C;
    logits[r] = gpu::load<kSize>(t.logits.pixel<const T>(at.n, at.i) + c, valid[r]);
    x[r] = gpu::load<kSize>(t.input.pixel<const T>(at.n, at.i) + c, valid[r]);
    if constexpr (kBackward) grad[r] = gpu::load<kSize>(t.grad_output.pixel<const T>(at.n, at.i) + c, valid[r]);
  }

  A exps[kRows][kSize], top = -A(INFINITY), sum = 0, products = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto numbers = gpu::to_compute(logits[r]);
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      exps[r][v] = valid[r] ? numbers.values[v] : -A(INFINITY);
      top = larger(top, exps[r][v]);
    }
  }
  top = over_lanes(lanes, top, larger<A>);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int v = 0; v < kSize; ++v) sum += exps[r][v] = std::exp(exps[r][v] - top);
    if constexpr (kBackward) products += sum_products(exps[r], grad[r], x[r]);
  }
  sum = over_lanes(lanes, sum, plus<A>);
  if constexpr (kBackward) products = over_lanes(lanes, products, plus<A>);
  const A factor = A(C) / sum;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (valid[r]) store<kBackward>(t, at, (r * lanes + lane) * kSize, exps[r], factor, products / sum, grad[r], x[r]);
}

// For more channels than registers: a block computes a pixel, a thread every 256th group of kSize channels. It reads
// the logits three times and, backward, the rest twice; blocks are few enough (24 KB of each tensor for 6144 channels,
// 3 to 8 blocks a multiprocessor) for the caches to hold their pixels between. Shared memory: the warps' parts of the
// three sums. Roofline as above, less what the cache misses; 75 % of the copy bandwidth expected. Not yet measured on a
// GPU.
template <bool kBackward, typename T, int kSize>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 3)
    again(SoftmaxGateParams p, Views t /* each [N, P, C] */) {
  using A = Compute<T>;
  GPU_SHARED(parts, A[3][kWarps]);
  const gpu::Pixel at = gpu::locate(p.N, p.P, blockIdx.x);
  const int C = int(p.C), first = int(threadIdx.x) * kSize, step = kThreads * kSize;
  const T *logits = t.logits.pixel<const T>(at.n, at.i), *x = t.input.pixel<const T>(at.n, at.i);
  const T* grad = kBackward ? t.grad_output.pixel<const T>(at.n, at.i) : x;
  A top = -A(INFINITY), sum = 0, products = 0;
#pragma unroll 4
  for (int c = first; c < C; c += step) {
    const auto group = gpu::to_compute(gpu::load<kSize>(logits + c));
#pragma unroll
    for (int v = 0; v < kSize; ++v) top = larger(top, group.values[v]);
  }
  top = over_block(parts[0], top, larger<A>);

  const auto exponentials = [&](A(&exps)[kSize], int c) {
    const auto group = gpu::to_compute(gpu::load<kSize>(logits + c));
#pragma unroll
    for (int v = 0; v < kSize; ++v) exps[v] = std::exp(group.values[v] - top);
  };
#pragma unroll 2
  for (int c = first; c < C; c += step) {
    A exps[kSize];
    exponentials(exps, c);
#pragma unroll
    for (int v = 0; v < kSize; ++v) sum += exps[v];
    if constexpr (kBackward) products += sum_products(exps, gpu::load<kSize>(grad + c), gpu::load<kSize>(x + c));
  }
  sum = over_block(parts[1], sum, plus<A>);
  if constexpr (kBackward) products = over_block(parts[2], products, plus<A>);
  const A factor = A(C) / sum;
#pragma unroll 2
  for (int c = first; c < C; c += step) {
    A exps[kSize];
    exponentials(exps, c);
    store<kBackward>(t, at, c, exps, factor, products / sum, gpu::load<kSize>(grad + c), gpu::load<kSize>(x + c));
  }
}

// --- host ------------------------------------------------------------------------------------------------------------

template <bool kBackward, typename T, int kSize>
void launch(const SoftmaxGateParams& p, const Views& t, gpu::Stream stream) {
  const int64_t groups = p.C / kSize, pixels = p.N * p.P;
  const auto with_rows = [&](auto rows) {
    int lanes = 1;
    while (lanes < 32 && lanes < groups) lanes *= 2;
    gpu::launch(
        "softmax_gate", in_registers<kBackward, T, kSize, decltype(rows)::value>,
        {blocks_for("softmax_gate", pixels, kThreads / lanes), kThreads, 0, stream}, p, lanes, t);
  };
  if (groups <= 32) return with_rows(Constant<1>{});
  if (groups <= 64) return with_rows(Constant<2>{});
  if (groups <= 128) return with_rows(Constant<4>{});
  DANET_CHECK(p.C < int64_t(1) << 30, "softmax_gate: too many channels");
  gpu::launch(
      "softmax_gate", again<kBackward, T, kSize>, {blocks_for("softmax_gate", pixels, 1), kThreads, 0, stream}, p, t);
}

// In packets of 16 bytes where they are aligned, else a channel at a time.
template <bool kBackward>
void run(const Tensor& input, SoftmaxGateParams p, const Views& t, gpu::Stream stream) {
  const std::initializer_list<ImageView> views = {t.grad_output, t.input, t.logits, t.result, t.grad_logits};
  p = in_one_line(p, views);
  with_type(input, [&](auto type) {
    using T = decltype(type);
    constexpr int kSize = gpu::Packet<T>::kSize;
    if (fits_packets<T>(p.C, views)) return launch<kBackward, T, kSize>(p, t, stream);
    launch<kBackward, T, 1>(p, t, stream);
  });
}

Tensor softmax_gate(const Tensor& input, const Tensor& logits) {
  const SoftmaxGateParams p = check_softmax_gate(input, logits);
  const OnDevice here(input);
  const Image x(input), weights(logits), out(empty_image(input, input.sizes()));
  if (p.N * p.P * p.C > 0) run<false>(input, p, {x.view, x.view, weights.view, out.view, out.view}, here.stream());
  return out.tensor;
}

std::tuple<Tensor, Tensor> softmax_gate_backward(const Tensor& grad_output, const Tensor& input, const Tensor& logits) {
  const SoftmaxGateParams p = check_softmax_gate(input, logits);
  check_like("softmax_gate", "grad_output", grad_output, input, input.sizes());
  const OnDevice here(input);
  const Image grad(grad_output), x(input), weights(logits);
  const Image grad_input(empty_image(input, input.sizes())), grad_logits(empty_image(input, input.sizes()));
  if (p.N * p.P * p.C > 0)
    run<true>(input, p, {grad.view, x.view, weights.view, grad_input.view, grad_logits.view}, here.stream());
  return {grad_input.tensor, grad_logits.tensor};
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("softmax_gate", TORCH_BOX(&softmax_gate));
  library.impl("softmax_gate_backward", TORCH_BOX(&softmax_gate_backward));
}

}  // namespace danet
