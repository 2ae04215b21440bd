// The check of SDC's sizes and options. Every entry point calls it: torch on the CPU and on CUDA devices, SaFEM, and
// the C++ library. It needs no torch. The kernel files, which are compiled once per instruction set, must not include
// it: the linker could merge <sstream> code that was compiled for AVX-512 into code for older processors.
#pragma once

#include <sstream>

#include "sdc.h"

namespace danet {
namespace {

// Throws Error("<op>: <parts>") unless the condition holds.
template <typename Error, typename... Parts>
void require(bool condition, const char* op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw Error(message.str());
}

// The parameters of a call; throws Error if its options are invalid.
template <typename Error>
SdcParams check_sdc(const char* op, const SdcOptions& o, SdcLayout layout) {
  require<Error>(
      o.N >= 0 && o.C >= 1 && o.H >= 1 && o.W >= 1, op, "input must be [N, C, H, W] with C, H, W >= 1, got [", o.N,
      ", ", o.C, ", ", o.H, ", ", o.W, "]");
  require<Error>(o.groups >= 1, op, "groups must be >= 1, got ", o.groups);
  require<Error>(o.C % o.groups == 0, op, "groups must divide C = ", o.C, ", got ", o.groups);
  require<Error>(o.offset_scale - o.offset_scale == 0, op, "offset_scale must be finite, got ", o.offset_scale);
  for (int axis = 0; axis < 2; ++axis) {
    const auto check_range = [&](const char* name, int64_t value, int64_t minimum) {
      constexpr int64_t kMaximum = (1 << 24) - 1;
      require<Error>(
          value >= minimum && value <= kMaximum, op, name, " must be >= ", minimum, " and <= ", kMaximum, ", got ",
          value);
    };
    check_range("kernel_size", o.kernel_size[axis], 1);
    check_range("stride", o.stride[axis], 1);
    check_range("padding", o.padding[axis], 0);
    check_range("dilation", o.dilation[axis], 1);
    const int64_t size = (axis == 0 ? o.H : o.W) + 2 * o.padding[axis];
    const int64_t window = o.dilation[axis] * (o.kernel_size[axis] - 1) + 1;
    require<Error>(
        size >= window, op, "the dilated window must fit into the padded input, got a window of ", window,
        " pixels and an input of ", size);
  }
  const int64_t taps = o.kernel_size[0] * o.kernel_size[1];
  require<Error>(
      !o.remove_center || (taps % 2 == 1 && taps > 1), op, "remove_center needs an odd number of taps above 1, got ",
      o.kernel_size[0], " * ", o.kernel_size[1], " taps");
  return SdcParams(o, layout);
}

// Whether element offsets within one image, including a border of two pixels, fit into int32_t at this pixel stride.
inline bool fits_32_bits(const SdcParams& p, int64_t pixel_stride) {
  return double(p.H + 4) * double(p.W + 4) * double(pixel_stride) < 0x1p31;
}

// Throws Error if the call exceeds the limits of the kernels: kMaxTaps, and 32-bit indices within one image.
// `indices_per_pixel` is C on the CPU, whose kernels index elements, and 1 on CUDA devices, whose kernels index pixels.
// The Python functions compute larger calls by their reference implementation.
template <typename Error>
void check_sdc_limits(const char* op, const SdcParams& p, int64_t indices_per_pixel) {
  require<Error>(
      fits_32_bits(p, indices_per_pixel), op, "an image must have (H + 4) * (W + 4) * ", indices_per_pixel,
      " < 2^31, got H = ", p.H, ", W = ", p.W);
  require<Error>(double(p.C_out) < 0x1p31, op, "K * C must be < 2^31, got ", p.C_out);
  require<Error>(p.K <= kMaxTaps, op, "a window must have at most ", kMaxTaps, " taps, got ", p.K);
}

}  // namespace
}  // namespace danet
