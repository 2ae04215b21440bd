// The operators as torch calls them: sdc, dcnv3, dcnv4 and their backward ones, the same on every device.
#pragma once

#include <tuple>

#include "sdc_check.h"

namespace danet {
namespace {

// What the source of a device defines, for offset and mask wherever they are. backward writes grad_offset and grad_mask and
// returns the gradient of input; deterministic: with the same bits in every run.
Tensor forward(const SdcParams& p, const Tensor& input, const ImageView& offset, const ImageView& mask);
Tensor backward(
    const SdcParams& p, const Tensor& grad_output, const Tensor& input, const ImageView& offset, const ImageView& mask,
    const ImageView& grad_offset, const ImageView& grad_mask, bool deterministic);

// `sdc`, and `dcnv3`, whose order of taps and pairs is another.
template <bool is_dcnv3>
Tensor sdc(
    const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups, int64_t kernel_h, int64_t kernel_w,
    int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
    double offset_scale, bool softmax, bool remove_center) {
  const SdcParams p = check_sdc(
      is_dcnv3, input, offset, mask,
      {groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, offset_scale,
       softmax, remove_center});
  return forward(p, input, Image(offset).view, Image(mask).view);
}

template <bool is_dcnv3>
std::tuple<Tensor, Tensor, Tensor> sdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups,
    int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
    int64_t dilation_h, int64_t dilation_w, double offset_scale, bool softmax, bool remove_center, bool deterministic) {
  const SdcParams p = check_sdc(
      is_dcnv3, input, offset, mask,
      {groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, offset_scale,
       softmax, remove_center});
  const Image offsets(offset), masks(mask);
  const Image grad_offset(empty_image(offset, offset.sizes())), grad_mask(empty_image(mask, mask.sizes()));
  const Tensor grad_input =
      backward(p, grad_output, input, offsets.view, masks.view, grad_offset.view, grad_mask.view, deterministic);
  return {grad_input, grad_offset.tensor, grad_mask.tensor};
}

Tensor dcnv4(
    const Tensor& input, const Tensor& offset_mask, int64_t groups, int64_t kernel_h, int64_t kernel_w,
    int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
    double offset_scale, bool softmax, bool remove_center) {
  const SdcParams p = check_dcnv4(
      input, offset_mask,
      {groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, offset_scale,
       softmax, remove_center});
  const Image packed(offset_mask);
  return forward(p, input, packed.view, mask_of(p, packed));
}

std::tuple<Tensor, Tensor> dcnv4_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset_mask, int64_t groups, int64_t kernel_h,
    int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
    int64_t dilation_w, double offset_scale, bool softmax, bool remove_center, bool deterministic) {
  const SdcParams p = check_dcnv4(
      input, offset_mask,
      {groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, offset_scale,
       softmax, remove_center});
  const Image packed(offset_mask), grad(empty_offset_mask(p, offset_mask));
  const Tensor grad_input =
      backward(p, grad_output, input, packed.view, mask_of(p, packed), grad.view, mask_of(p, grad), deterministic);
  return {grad_input, grad.tensor};
}

inline void register_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("sdc", TORCH_BOX(&sdc<false>));
  library.impl("sdc_backward", TORCH_BOX(&sdc_backward<false>));
  library.impl("dcnv3", TORCH_BOX(&sdc<true>));
  library.impl("dcnv3_backward", TORCH_BOX(&sdc_backward<true>));
  library.impl("dcnv4", TORCH_BOX(&dcnv4));
  library.impl("dcnv4_backward", TORCH_BOX(&dcnv4_backward));
}

}  // namespace
}  // namespace danet
