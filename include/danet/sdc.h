// SDC from C++, without torch and Python: the same kernels on raw pointers. Link `danet_cpp` (CMakeLists.txt,
// -DCPP_LIBRARY=ON); examples/cpp is a program that does.
//
//   out[n, y, x, c] = sum_{k < K} m[n, y, x, g, k] * input[n, Y, X, c],   g = c / (C / groups)
//   Y = y*s_y - p_y + h_y + scale * (k_y*d_y - h_y + offset[n, y, x, g, k, 0]),   the same for X with index 1
//
// h = d * (kernel_size - 1) / 2 (whole numbers), tap k = (k_y, k_x) in row-major order without the middle one where
// remove_center, m the softmax of mask over the K taps, or mask itself. input[Y, X] is bilinear between the four pixels
// around it, zero outside the image.
//
// Images are dense and channels-last, in C order:
//
//   input, grad_input     [N, H, W, C]
//   offset, grad_offset   [N, H_out, W_out, groups, K, 2]    (y, x) in pixels
//   mask, grad_mask       [N, H_out, W_out, groups, K]       logits where softmax
//   out, grad_output      [N, H_out, W_out, C]
//
// The processor's best instruction set is used; the environment variable DANET_CPU_CAPABILITY=default|avx2 lowers it.
// Functions may be called from any threads at once. They throw std::invalid_argument, one line that names the wrong
// option, before anything is read or written, and std::bad_alloc.
#pragma once

#include <cstdint>

#include "sdc_options.h"

#if defined(__GNUC__)
#define DANET_PUBLIC __attribute__((visibility("default")))
#else
#define DANET_PUBLIC
#endif

namespace danet {

// float16 and bfloat16: 16 bits, as every library stores them; cast pointers to these.
struct DANET_PUBLIC Half;
struct DANET_PUBLIC BFloat16;

// What follows from them.
struct SdcSizes {
  int64_t K;  // taps of a group, at most 256
  int64_t H_out, W_out;
};
DANET_PUBLIC SdcSizes sdc_sizes(const SdcOptions& options);

// T: double, float, Half or BFloat16. The work is shared among `threads`, of which threads - 1 are started and ended by
// the call; the result does not depend on their number.
template <typename T>
DANET_PUBLIC void sdc_forward(
    const SdcOptions& options, const T* input, const T* offset, const T* mask, T* out, int threads = 1);

// Rows [begin, end) of the N * H_out rows of `out`, for callers with threads of their own.
template <typename T>
DANET_PUBLIC void sdc_forward_rows(
    const SdcOptions& options, const T* input, const T* offset, const T* mask, T* out, int64_t begin, int64_t end);

// What half types are summed in.
template <typename T>
struct SdcSum {
  using type = float;
};
template <>
struct SdcSum<double> {
  using type = double;
};

// The gradients of input, offset and mask; whatever these pointers held is overwritten. grad_input is a sum, float for
// half types.
template <typename T>
DANET_PUBLIC void sdc_backward(
    const SdcOptions& options, const T* grad_output, const T* input, const T* offset, const T* mask,
    typename SdcSum<T>::type* grad_input, T* grad_offset, T* grad_mask, int threads = 1);

}  // namespace danet
