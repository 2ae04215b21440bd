// SDC from C++, without torch and Python: the CPU kernels on raw pointers. Link `danet_cpp` (CMakeLists.txt,
// -DCPP_LIBRARY=ON); examples/cpp is an example.
//
//   out[n, y, x, c] = sum_{k < K} m[n, y, x, g, k] * input[n, Y, X, c],   g = c / (C / groups)
//   Y = y*s_y - p_y + h_y + scale * (k_y*d_y - h_y + offset[n, y, x, g, k, 0])
//   X = x*s_x - p_x + h_x + scale * (k_x*d_x - h_x + offset[n, y, x, g, k, 1])
//
// with stride s, padding p, dilation d, and h = d * (kernel_size - 1) / 2 (integer division), the center of the window.
// Tap k is (k_y, k_x) in row-major order, without the middle tap if remove_center. m is the softmax of mask over the K
// taps, or mask itself. input[Y, X] is bilinear between the four pixels around it, and zero outside the image.
//
// Images are dense and channels-last, in C order:
//
//   input, grad_input     [N, H, W, C]
//   offset, grad_offset   [N, H_out, W_out, groups, K, 2]    (y, x) in pixels
//   mask, grad_mask       [N, H_out, W_out, groups, K]       logits if softmax, else weights
//   out, grad_output      [N, H_out, W_out, C]
//
// The library uses the best instruction set of the processor; the environment variable
// DANET_CPU_CAPABILITY=default|avx2 selects a lower one. All functions are thread-safe. If an option is invalid, they
// throw std::invalid_argument, whose message names the option, before they read or write anything. They may throw
// std::bad_alloc.
#pragma once

#include <cstdint>

#include "sdc_options.h"

#if defined(__GNUC__)
#define DANET_PUBLIC __attribute__((visibility("default")))
#else
#define DANET_PUBLIC
#endif

namespace danet {

// float16 and bfloat16, in the usual 16-bit formats. Cast pointers to these types.
struct DANET_PUBLIC Half;
struct DANET_PUBLIC BFloat16;

// The sizes that follow from the options.
struct SdcSizes {
  int64_t K;  // taps per group, at most 256
  int64_t H_out, W_out;
};
DANET_PUBLIC SdcSizes sdc_sizes(const SdcOptions& options);

// Computes out. T: double, float, Half or BFloat16. The call starts and joins threads - 1 threads; the result does not
// depend on their number.
template <typename T>
DANET_PUBLIC void sdc_forward(
    const SdcOptions& options, const T* input, const T* offset, const T* mask, T* out, int threads = 1);

// Computes rows [begin, end) of the N * H_out rows of out, for callers with their own threads.
template <typename T>
DANET_PUBLIC void sdc_forward_rows(
    const SdcOptions& options, const T* input, const T* offset, const T* mask, T* out, int64_t begin, int64_t end);

// The type in which gradients are summed: float for half types.
template <typename T>
struct SdcSum {
  using type = float;
};
template <>
struct SdcSum<double> {
  using type = double;
};

// Computes the gradients of input, offset and mask, and overwrites the contents of these arrays. grad_input is a sum
// and therefore of type float for half types.
template <typename T>
DANET_PUBLIC void sdc_backward(
    const SdcOptions& options, const T* grad_output, const T* input, const T* offset, const T* mask,
    typename SdcSum<T>::type* grad_input, T* grad_offset, T* grad_mask, int threads = 1);

}  // namespace danet
