// The CPU kernels of LCDC, one pixel at a time. The channels of a pixel are copied into a zero-padded row, so that a
// vector of channels can be loaded at the offset of any tap without bounds checks. Backward copies d in the same way.
#include "../common/lanes.h"
#include "../common/vec_math.h"
#include "lcdc.h"

namespace danet {
namespace {

// A row of C channels, with k / 2 zeros before them, and k / 2 zeros plus one vector of zeros after them.
template <typename A>
struct PaddedRow {
  A* start;     // k / 2 elements before channel 0
  A* channels;  // channel 0

  static int64_t size(const LcdcParams& p) { return (p.C + 2 * (p.k / 2) + 2 * kLanes<A> + 15) / 16 * 16; }

  PaddedRow(const LcdcParams& p, A* memory) : start(memory), channels(memory + p.k / 2) {
    for (int64_t i = 0; i < size(p); ++i) memory[i] = 0;
  }
};

// Scratch memory of one thread: padded rows of the input, of d and (with gate) of g * s, the taps of the kernel, and
// the sums for grad_weight, one vector per tap.
template <typename A>
struct LcdcWorkspace {
  PaddedRow<A> x, d, gated;
  A *taps, *sums;

  static int64_t size(const LcdcParams& p) {
    return 3 * PaddedRow<A>::size(p) + (p.k + 15) / 16 * 16 + p.k * kLanes<A>;
  }
  LcdcWorkspace(const LcdcParams& p, char* scratch)
      : x(p, reinterpret_cast<A*>(scratch)), d(p, x.start + PaddedRow<A>::size(p)),
        gated(p, d.start + PaddedRow<A>::size(p)), taps(gated.start + PaddedRow<A>::size(p)),
        sums(taps + (p.k + 15) / 16 * 16) {}
};

template <typename T>
int64_t scratch_size(const LcdcParams& p) {
  return LcdcWorkspace<Compute<T>>::size(p) * int64_t(sizeof(Compute<T>));
}

template <typename T, typename A>
DANET_INLINE void copy_row(const T* from, A* to, int64_t C) {
  int64_t c = 0;
  for (; c + kLanes<A> <= C; c += kLanes<A>) store(to + c, load(from + c));
  for (; c < C; ++c) to[c] = to_compute(from[c]);
}
template <typename T, typename A>
DANET_INLINE void copy_taps(const T* from, A* to, int64_t k) {
  for (int64_t j = 0; j < k; ++j) to[j] = to_compute(from[j]);
}

template <typename V>
DANET_INLINE V sigmoid(V a) {
  return 1 / (1 + exp(-a));
}

// Returns sum_j taps[kReversed ? k - 1 - j : j] * row[c + j] for the vector of channels from c on. kTaps is k, or 0 if
// k is not a compile-time constant.
template <int kTaps, bool kReversed, typename A>
DANET_INLINE Vec<A> convolve_channels(const A* taps, const A* row, int64_t c, int64_t k) {
  if constexpr (kTaps > 0) k = kTaps;
  Vec<A> sum{};
#pragma GCC unroll 8
  for (int64_t j = 0; j < k; ++j) sum += taps[kReversed ? k - 1 - j : j] * load(row + c + j);
  return sum;
}

template <typename T, int kTaps>
void forward_taps(
    const LcdcParams& p, ImageView input, const T* weight, ImageView out, int64_t begin, int64_t end, char* scratch) {
  using A = Compute<T>;
  const LcdcWorkspace<A> work(p, scratch);
  copy_taps(weight, work.taps, p.k);
  // NOTE: copies one pixel ahead. A shifted load spans two stores of the copy, and stalls until both have left the
  // store buffer.
  const PaddedRow<A> rows[2] = {work.x, work.d};
  auto copy = [&](int64_t pixel) { copy_row(input.pixel<T>(pixel / p.P, pixel % p.P), rows[pixel % 2].channels, p.C); };
  if (begin < end) copy(begin);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    int64_t n = pixel / p.P, i = pixel % p.P;
    const PaddedRow<A>& x = rows[pixel % 2];
    T* result = out.pixel<T>(n, i);
    // Prefetch the next pixel, and load the taps of this position
    if (pixel + 1 < end) copy(pixel + 1);
    if (!p.shared) copy_taps(weight + i * p.k, work.taps, p.k);
    // Convolve, apply the gate and write back
    for (int64_t c = 0; c < p.C; c += kLanes<A>) {
      Vec<A> a = convolve_channels<kTaps, /*kReversed=*/false>(work.taps, x.start, c, p.k);
      if (p.gate) a = sigmoid(a) * load(x.channels + c);
      c + kLanes<A> <= p.C ? store(result + c, a) : store_first(result + c, a, p.C - c);
    }
  }
}

template <typename T, int kTaps>
void backward_taps(
    const LcdcParams& p, ImageView grad_output, ImageView input, const T* weight, ImageView grad_input, double* partial,
    T* grad_weight, int64_t begin, int64_t end, char* scratch) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  const int64_t k = kTaps > 0 ? kTaps : p.k, images = p.shared ? 1 : p.N;
  const LcdcWorkspace<A> work(p, scratch);
  copy_taps(weight, work.taps, k);
  for (int64_t j = 0; j < k * L; ++j) work.sums[j] = 0;
  // A work item is one pixel or, without shared taps, one position of all images.
  for (int64_t work_index = begin; work_index < end; ++work_index) {
    if (!p.shared) {
      copy_taps(weight + work_index * k, work.taps, k);
      for (int64_t j = 0; j < k * L; ++j) work.sums[j] = 0;
    }
    for (int64_t image = 0; image < images; ++image) {
      int64_t n = p.shared ? work_index / p.P : image, i = p.shared ? work_index % p.P : work_index;
      T* result = grad_input.pixel<T>(n, i);
      // Load the pixel's input and gradient
      copy_row(input.pixel<T>(n, i), work.x.channels, p.C);
      copy_row(grad_output.pixel<T>(n, i), work.d.channels, p.C);
      // With gate: recompute s, then g * s and d
      if (p.gate)
        for (int64_t c = 0; c < p.C; c += L) {
          Vec<A> s = sigmoid(convolve_channels<kTaps, /*kReversed=*/false>(work.taps, work.x.start, c, k));
          // The padding beyond C stays zero, because d and x are zero there.
          Vec<A> gated = load(work.d.channels + c) * s;
          store(work.gated.channels + c, gated);
          store(work.d.channels + c, gated * load(work.x.channels + c) * (1 - s));
        }
      // Write grad_input, and accumulate grad_weight
      for (int64_t c = 0; c < p.C; c += L) {
        Vec<A> grad = convolve_channels<kTaps, /*kReversed=*/true>(work.taps, work.d.start, c, k);
        if (p.gate) grad += load(work.gated.channels + c);
        Vec<A> d = load(work.d.channels + c);
#pragma GCC unroll 8
        for (int64_t j = 0; j < k; ++j)
          store(work.sums + j * L, load(work.sums + j * L) + d * load(work.x.start + c + j));
        c + L <= p.C ? store(result + c, grad) : store_first(result + c, grad, p.C - c);
      }
    }
    // Write the position's row of grad_weight
    if (!p.shared)
      for (int64_t j = 0; j < k; ++j)
        grad_weight[work_index * k + j] = from_compute<T>(sum_lanes<A>(load(work.sums + j * L)));
  }
  if (p.shared)
    for (int64_t j = 0; j < k; ++j) partial[j] = double(sum_lanes<A>(load(work.sums + j * L)));
}

// Calls f with k as a compile-time constant if k is 3 or 5, else with 0.
template <typename F>
DANET_INLINE void with_taps(int64_t k, const F& f) {
  switch (k) {
    case 3: return f(std::integral_constant<int, 3>{});
    case 5: return f(std::integral_constant<int, 5>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

template <typename T>
void forward(
    const LcdcParams& p, ImageView input, const void* weight, ImageView out, int64_t begin, int64_t end,
    char* scratch) {
  with_taps(p.k, [&](auto taps) {
    forward_taps<T, taps()>(p, input, static_cast<const T*>(weight), out, begin, end, scratch);
  });
}

template <typename T>
void backward(
    const LcdcParams& p, ImageView grad_output, ImageView input, const void* weight, ImageView grad_input,
    double* partial, void* grad_weight, int64_t begin, int64_t end, char* scratch) {
  with_taps(p.k, [&](auto taps) {
    backward_taps<T, taps()>(
        p, grad_output, input, static_cast<const T*>(weight), grad_input, partial, static_cast<T*>(grad_weight), begin,
        end, scratch);
  });
}

template <typename T>
void convert_values(const double* from, void* to, int64_t count) {
  for (int64_t j = 0; j < count; ++j) static_cast<T*>(to)[j] = from_compute<T>(Compute<T>(from[j]));
}

template <typename T>
constexpr LcdcKernels kKernels = {scratch_size<T>, forward<T>, backward<T>, convert_values<T>};

}  // namespace

const LcdcKernels& DANET_ISA::lcdc_kernels(DType dtype) { return DANET_PICK_TYPE(kKernels, dtype); }

}  // namespace danet
