// The input of the CPU kernels as they can address it.
#pragma once

#include "../common/tensor.h"
#include "sdc_check.h"

namespace danet {
namespace {

// The image, copied if it is a slice of pixels so wide that 32 bits do not count their elements.
inline Image compact_image(const Tensor& input, const SdcParams& p) {
  Image image(input);
  if (fits_32_bits(p, image.view.pixel_stride)) return image;
  return Image(torch::stable::clone(torch::stable::contiguous(input)));
}

}  // namespace
}  // namespace danet
