// Copies the input of the CPU kernels if its pixel stride is too large for their 32-bit indices.
#pragma once

#include "../common/tensor.h"
#include "sdc_check.h"

namespace danet {
namespace {

// Returns the input as an Image. If the input is a slice of the channels of a wider tensor, and its pixel stride is so
// large that element offsets within one image do not fit into 32 bits, it is first copied to a dense tensor.
inline Image compact_image(const Tensor& input, const SdcParams& p) {
  Image image(input);
  if (fits_32_bits(p, image.view.pixel_stride)) return image;
  return Image(torch::stable::clone(torch::stable::contiguous(input)));
}

}  // namespace
}  // namespace danet
