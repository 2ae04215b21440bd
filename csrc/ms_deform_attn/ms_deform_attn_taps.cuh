// Prepares the taps of multi-scale deformable attention (ms_deform_attn.h) on CUDA devices. The work is divided into
// items: an item is one head of one query. The threads of a block prepare the taps of its items in shared memory, one
// tap per thread; then they share the channels.
//
// Items are numbered (n * Q + q) * M + m, so that out is [num_items, D]. In the templates, T is the dtype of value, S
// that of locations and weights (T or the compute dtype), and A = Compute<T> is the type of the arithmetic.
#pragma once

#include "../sdc/sdc_taps.cuh"
#include "ms_deform_attn.h"

namespace danet {
namespace {

// Tensors of a call that all kernels read.
struct MsInputs {
  MsDeformAttnParams p;
  const int64_t *shapes /* [L, 2] */, *starts /* [L] */;
  ImageView value /* [N, S, M, D] */, locations /* [N, Q, M, L, P, 2] */, weights /* [N, Q, M, L, P] */;
};

// Reads a level. If it does not lie within value, its size is (0, 0) and start is -1, which makes its samples NaN: an
// error would have to wait for the device.
GPU_DEVICE MsLevel read_level(const MsInputs& in, int l) {
  const int64_t H = in.shapes[2 * l], W = in.shapes[2 * l + 1], start = in.starts[l], limit = int64_t(1) << 24;
  if (H < 0 || W < 0 || H >= limit || W >= limit) return {0, 0, -1};
  if (H * W > 0 && (start < 0 || start > in.p.S - H * W)) return {0, 0, -1};
  return {int32_t(H), int32_t(W), start};
}

// The position of an item. Index is int32_t if all indices fit, because its divisions are far cheaper.
template <typename Index>
struct MsItem {
  Index n, q, m;

  GPU_DEVICE MsItem(const MsDeformAttnParams& p, Index item) {
    using Unsigned = std::make_unsigned_t<Index>;  // unsigned division is shorter
    const Unsigned M = Unsigned(p.M), Q = Unsigned(p.Q), query = Unsigned(item) / M;
    m = Index(Unsigned(item) - query * M);
    n = Index(query / Q), q = Index(query - Unsigned(n) * Q);
  }
};

// Locates the sample of one tap, in pixels of its level. Samples at -1 and below, or at the size and above, are
// outside.
template <typename A, typename S>
GPU_DEVICE Sample<A> locate_point(const MsLevel& level, const S* __restrict__ location) {
  const A x = gpu::to_compute(location[0]) * A(level.W) - A(0.5),
          y = gpu::to_compute(location[1]) * A(level.H) - A(0.5);
  Sample<A> sample = sample_at(y, x, uint32_t(level.H), uint32_t(level.W));
  if (!(y > A(-1) && x > A(-1))) sample.cell = {0, 0};
  if (level.start < 0) sample.is_nan = true;
  if (level.start >= 0 && (level.H == 0 || level.W == 0)) sample.is_nan = false;
  return sample;
}

// The maximum of an item's logits and the reciprocal of the softmax's denominator.
template <typename A>
struct SoftmaxFactors {
  A top, factor;
};

// Calls store(tap, level, sample, m) for the K taps of `count` items from `first` on, one tap per thread; `tap` is item
// * K + k. levels [L] and factors [count] are in shared memory; this function fills them, and synchronizes the block.
template <typename A, typename S, typename Index, typename Store>
GPU_DEVICE void prepare_points(
    const MsInputs& in, MsLevel* levels, SoftmaxFactors<A>* factors, Index first, int count, const Store& store) {
  const int K = int(in.p.L * in.p.P), P = int(in.p.P);
  for (int l = int(threadIdx.x); l < int(in.p.L); l += kThreads) levels[l] = read_level(in, l);
  // Compute the denominator of the softmax, one item per thread. The maximum skips NaN logits; exp carries them into
  // the sum.
  if (in.p.softmax)
    for (int item = int(threadIdx.x); item < count; item += kThreads) {
      const MsItem<Index> output(in.p, first + item);
      const S* logit = in.weights.pixel<const S>(output.n, output.q) + output.m * K;
      A top = gpu::to_compute(logit[0]), sum = 0;
      for (int k = 1; k < K; ++k) top = max(top, gpu::to_compute(logit[k]));
      for (int k = 0; k < K; ++k) sum += gpu::exponential<S>(gpu::to_compute(logit[k]) - top);
      factors[item] = {top, 1 / sum};
    }
  __syncthreads();
  // Locate the samples.
  for (int tap = int(threadIdx.x); tap < count * K; tap += kThreads) {
    const int item = tap / K, k = tap - item * K;
    const MsItem<Index> output(in.p, first + item);
    const MsLevel level = levels[k / P];
    const S* location = in.locations.pixel<const S>(output.n, output.q) + (output.m * K + k) * 2;
    A m = gpu::to_compute(in.weights.pixel<const S>(output.n, output.q)[output.m * K + k]);
    if (in.p.softmax) m = gpu::exponential<S>(m - factors[item].top) * factors[item].factor;
    store(tap, level, locate_point<A>(level, location), m);
  }
  __syncthreads();
}

}  // namespace
}  // namespace danet
