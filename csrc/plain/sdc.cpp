// The C++ library (include/danet/sdc.h): SDC for callers without torch. sdc_cpu.cpp is its counterpart for torch.
#include "../../include/danet/sdc.h"

#include <stdexcept>

#include "../common/types.h"
#include "../sdc/sdc_check.h"
#include "../sdc/sdc_parallel.h"
#include "threads.h"

namespace danet {
namespace {

SdcParams params_of(const SdcOptions& options) {
  const SdcParams p = check_sdc<std::invalid_argument>("sdc", options, SdcLayout::kSdc);
  check_sdc_limits<std::invalid_argument>("sdc", p, p.C);
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

// A contiguous image. Kernels do not write to the views of their inputs.
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
  require<std::invalid_argument>(
      begin >= 0 && begin <= end && end <= p.N * p.H_out, "sdc", "rows must lie in [0, N * H_out) = [0, ",
      p.N * p.H_out, "), got [", begin, ", ", end, ")");
  const Views v(p, input, offset, mask, out);
  DANET_KERNELS(sdc_kernels, kType<T>).forward(p, v.input, v.offset, v.mask, v.out, begin, end);
}

template <typename T>
void sdc_forward(const SdcOptions& options, const T* input, const T* offset, const T* mask, T* out, int threads) {
  const SdcParams p = params_of(options);
  const Views v(p, input, offset, mask, out);
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, kType<T>);
  run_on_threads(p.N * p.H_out, threads, [&](int64_t begin, int64_t end) {
    kernels.forward(p, v.input, v.offset, v.mask, v.out, begin, end);
  });
}

template <typename T>
void sdc_backward(
    const SdcOptions& options, const T* grad_output, const T* input, const T* offset, const T* mask,
    typename SdcSum<T>::type* grad_input, T* grad_offset, T* grad_mask, int threads) {
  const SdcParams p = params_of(options);
  const Views v(p, input, offset, mask, grad_output), grads(p, grad_input, grad_offset, grad_mask, nullptr);
  backward_in_bands(
      p, DANET_KERNELS(sdc_kernels, kType<T>), v.out, v.input, v.offset, v.mask, grads.input, grads.offset, grads.mask,
      int64_t(sizeof *grad_input), std::max(threads, 1),
      [&](int64_t count, int64_t, const auto& body) { run_on_threads(count, threads, body); });
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
