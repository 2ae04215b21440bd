// include/danet/sdc.h: SDC for callers that have no torch. Checks and threads; sdc_cpu.cpp is the same for torch.
#include "../../include/danet/sdc.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>

#include "../common/types.h"
#include "../sdc/sdc.h"
#include "threads.h"

namespace danet {
namespace {

void check(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("sdc: " + message);
}

SdcParams params_of(const SdcOptions& o) {
  SdcParams p{};
  p.N = o.N, p.C = o.C, p.H = o.H, p.W = o.W, p.G = o.groups;
  p.offset_scale = o.offset_scale, p.softmax = o.softmax, p.remove_center = o.remove_center;
  check(p.N >= 0 && p.C >= 1 && p.H >= 1 && p.W >= 1, "C, H and W must be 1 or more, N 0 or more");
  check(p.G >= 1 && p.C % p.G == 0, "groups must divide C = " + std::to_string(p.C) + ", got " + std::to_string(p.G));
  check(p.offset_scale - p.offset_scale == 0, "offset_scale must be finite");
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    constexpr int64_t kMost = 1 << 24;
    for (int64_t value : {o.kernel_size[axis], o.stride[axis], o.dilation[axis], o.padding[axis] + 1})
      check(value >= 1 && value < kMost, "kernel_size, stride and dilation must be 1 or more, padding 0 or more");
    p.kernel_size[axis] = o.kernel_size[axis], p.stride[axis] = o.stride[axis];
    p.padding[axis] = o.padding[axis], p.dilation[axis] = o.dilation[axis];
    const int64_t space = (axis == 0 ? p.H : p.W) + 2 * p.padding[axis];
    const int64_t window = p.dilation[axis] * (p.kernel_size[axis] - 1) + 1;
    check(space >= window, "the padded input must be at least as large as the window");
    out[axis] = (space - window) / p.stride[axis] + 1;
  }
  p.H_out = out[0], p.W_out = out[1];
  const int64_t taps = p.kernel_size[0] * p.kernel_size[1];
  check(!p.remove_center || (taps % 2 == 1 && taps > 1), "remove_center needs an odd kernel_size above 1");
  p.K = taps - (p.remove_center ? 1 : 0);
  p.offset_group = 2 * p.K, p.mask_group = p.K;
  check(p.K <= kMaxTaps, "a window has at most " + std::to_string(kMaxTaps) + " taps");
  // The kernels count the elements of an image, and of a border of two pixels around it, in 32 bits.
  check(double(p.H + 4) * double(p.W + 4) * double(p.C) < 0x1p31, "an image must have less than 2^31 elements");
  return p;
}

template <typename T>
constexpr DType kType = DType::kFloat;
template <>
constexpr DType kType<double> = DType::kDouble;
template <>
constexpr DType kType<Half> = DType::kHalf;
template <>
constexpr DType kType<BFloat16> = DType::kBFloat16;

ImageView view(const void* data, int64_t pixels, int64_t channels) {
  return {const_cast<void*>(data), pixels * channels, channels};
}

struct Views {
  ImageView input, offset, mask, out;

  Views(const SdcParams& p, const void* input, const void* offset, const void* mask, const void* out)
      : input(view(input, p.H * p.W, p.C)), offset(view(offset, p.H_out * p.W_out, 2 * p.G * p.K)),
        mask(view(mask, p.H_out * p.W_out, p.G * p.K)), out(view(out, p.H_out * p.W_out, p.C)) {}
};

}  // namespace

SdcSizes sdc_sizes(const SdcOptions& options) {
  const SdcParams p = params_of(options);
  return {p.K, p.H_out, p.W_out};
}

template <typename T>
void sdc_forward_rows(
    const SdcOptions& options, const T* input, const T* offset, const T* mask, T* out, int64_t begin, int64_t end) {
  const SdcParams p = params_of(options);
  check(begin >= 0 && begin <= end && end <= p.N * p.H_out, "rows must lie in [0, N * H_out)");
  const Views v(p, input, offset, mask, out);
  DANET_KERNELS(sdc_kernels, kType<T>).forward(p, v.input, v.offset, v.mask, v.out, begin, end);
}

template <typename T>
void sdc_forward(const SdcOptions& options, const T* input, const T* offset, const T* mask, T* out, int threads) {
  const SdcParams p = params_of(options);
  const Views v(p, input, offset, mask, out);
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, kType<T>);
  share(p.N * p.H_out, threads, [&](int64_t begin, int64_t end) {
    kernels.forward(p, v.input, v.offset, v.mask, v.out, begin, end);
  });
}

// Every row of grad_input has one owner, which adds what reaches it in the order of the output pixels.
template <typename T>
void sdc_backward(
    const SdcOptions& options, const T* grad_output, const T* input, const T* offset, const T* mask,
    typename SdcSum<T>::type* grad_input, T* grad_offset, T* grad_mask, int threads) {
  const SdcParams p = params_of(options);
  const Views v(p, input, offset, mask, grad_output), grads(p, grad_input, grad_offset, grad_mask, nullptr);
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, kType<T>);
  const int64_t wanted = std::max(threads, 1);
  const int64_t bands = p.N == 0 ? 1 : std::min(wanted / std::gcd(p.N, wanted), std::min(p.H, p.H_out));
  std::unique_ptr<int32_t[][2]> reach;
  if (bands > 1) {
    reach.reset(new int32_t[p.N * p.H_out][2]);
    share(p.N * p.H_out, threads, [&](int64_t begin, int64_t end) {
      kernels.reach(p, v.offset, begin, end, reach.get());
    });
  }
  share(p.N * bands, threads, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / bands, band = unit % bands;
      const int64_t first = p.H * band / bands, last = p.H * (band + 1) / bands;
      std::fill_n(grad_input + (n * p.H + first) * p.W * p.C, (last - first) * p.W * p.C, 0);
      kernels.backward(
          p, v.out, v.input, v.offset, v.mask, grads.input, grads.offset, grads.mask, n, p.H_out * band / bands,
          p.H_out * (band + 1) / bands, first, last, reach.get());
    }
  });
}

#define DANET_INSTANTIATE(T) \
  template void sdc_forward(const SdcOptions&, const T*, const T*, const T*, T*, int); \
  template void sdc_forward_rows(const SdcOptions&, const T*, const T*, const T*, T*, int64_t, int64_t); \
  template void sdc_backward( \
      const SdcOptions&, const T*, const T*, const T*, const T*, typename SdcSum<T>::type*, T*, T*, int);

DANET_INSTANTIATE(double)
DANET_INSTANTIATE(float)
DANET_INSTANTIATE(Half)
DANET_INSTANTIATE(BFloat16)

}  // namespace danet
