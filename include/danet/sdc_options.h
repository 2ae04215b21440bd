// The sizes and options of one call of SDC. The C++ library (sdc.h), the torch operators and the kernels share this
// struct.
#pragma once

#include <cstdint>

namespace danet {

// Pairs are (y, x).
struct SdcOptions {
  int64_t N = 1, C = 1, H = 1, W = 1;  // sizes of the input; only N may be 0
  int64_t groups = 1;                  // groups of channels, each with its own offsets and mask; must divide C
  int64_t kernel_size[2] = {3, 3}, stride[2] = {1, 1}, padding[2] = {1, 1}, dilation[2] = {1, 1};
  double offset_scale = 1;     // scales taps and offsets about the center of the window; must be finite
  bool softmax = true;         // mask holds logits; false: mask holds the weights themselves
  bool remove_center = false;  // leave out the middle tap; needs an odd number of taps above 1
};

}  // namespace danet
