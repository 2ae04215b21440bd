// The operators that torch calls, on every device: sdc, dcnv3, dcnv4, deform_im2col and their backward operators. They
// check the arguments and prepare the views of offset and mask; run_forward and run_backward, defined in the source of
// a device, do the rest.
#pragma once

#include <tuple>

#include "sdc_arguments.h"

namespace danet {
namespace {

// Returns out. offset and mask are views, because DCNv4 has both in one tensor.
Tensor run_forward(const SdcParams& p, const Tensor& input, const ImageView& offset, const ImageView& mask);

// Writes grad_offset and grad_mask and returns grad_input. deterministic: the same bits in every run.
Tensor run_backward(
    const SdcParams& p, const Tensor& grad_output, const Tensor& input, const ImageView& offset, const ImageView& mask,
    const ImageView& grad_offset, const ImageView& grad_mask, bool deterministic);

// The parameters of a call of dcnv4. offset_mask holds the offsets and then the mask of each group; further channels
// are not used.
inline SdcParams check_dcnv4_call(const Tensor& input, const Tensor& offset_mask DANET_SDC_PARAMETERS) {
  check_input("dcnv4", input);
  const SdcParams p = check_sdc<std::runtime_error>("dcnv4", sdc_options(input DANET_SDC_ARGUMENTS), SdcLayout::kDcnv4);
  DANET_CHECK(
      offset_mask.dim() == 4 && offset_mask.size(1) >= 3 * p.G * p.K,
      "dcnv4: offset_mask must have at least 3*G*K = ", 3 * p.G * p.K, " channels");
  check_like("dcnv4", "offset_mask", offset_mask, input, {p.N, offset_mask.size(1), p.H_out, p.W_out});
  return p;
}

// The view of the mask in DCNv4's tensor.
inline ImageView mask_view(const SdcParams& p, const Image& offset_mask) {
  ImageView view = offset_mask.view;
  view.data = static_cast<char*>(view.data) + 2 * p.K * int64_t(offset_mask.tensor.element_size());
  return view;
}

template <SdcLayout layout>
Tensor sdc(const Tensor& input, const Tensor& offset, const Tensor& mask DANET_SDC_PARAMETERS) {
  const SdcParams p = check_call<layout>(input, offset, mask DANET_SDC_ARGUMENTS);
  return run_forward(p, input, Image(offset).view, Image(mask).view);
}

template <SdcLayout layout>
std::tuple<Tensor, Tensor, Tensor> sdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& mask DANET_SDC_PARAMETERS,
    bool deterministic) {
  const SdcParams p = check_call<layout>(input, offset, mask DANET_SDC_ARGUMENTS);
  const Image offsets(offset), masks(mask);
  const Image grad_offset(empty_image(offset, offset.sizes())), grad_mask(empty_image(mask, mask.sizes()));
  const Tensor grad_input =
      run_backward(p, grad_output, input, offsets.view, masks.view, grad_offset.view, grad_mask.view, deterministic);
  return {grad_input, grad_offset.tensor, grad_mask.tensor};
}

Tensor dcnv4(const Tensor& input, const Tensor& offset_mask DANET_SDC_PARAMETERS) {
  const SdcParams p = check_dcnv4_call(input, offset_mask DANET_SDC_ARGUMENTS);
  const Image packed(offset_mask);
  return run_forward(p, input, packed.view, mask_view(p, packed));
}

std::tuple<Tensor, Tensor> dcnv4_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset_mask DANET_SDC_PARAMETERS,
    bool deterministic) {
  const SdcParams p = check_dcnv4_call(input, offset_mask DANET_SDC_ARGUMENTS);
  const Image packed(offset_mask);
  Image grad(empty_image(offset_mask, offset_mask.sizes()));
  // Channels that the operator does not use have zero gradients.
  if (offset_mask.size(1) > 3 * p.G * p.K) torch::stable::zero_(grad.tensor);
  const Tensor grad_input = run_backward(
      p, grad_output, input, packed.view, mask_view(p, packed), grad.view, mask_view(p, grad), deterministic);
  return {grad_input, grad.tensor};
}

inline void register_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("sdc", TORCH_BOX(&sdc<SdcLayout::kSdc>));
  library.impl("sdc_backward", TORCH_BOX(&sdc_backward<SdcLayout::kSdc>));
  library.impl("dcnv3", TORCH_BOX(&sdc<SdcLayout::kDcnv3>));
  library.impl("dcnv3_backward", TORCH_BOX(&sdc_backward<SdcLayout::kDcnv3>));
  library.impl("deform_im2col", TORCH_BOX(&sdc<SdcLayout::kColumns>));
  library.impl("deform_im2col_backward", TORCH_BOX(&sdc_backward<SdcLayout::kColumns>));
  library.impl("dcnv4", TORCH_BOX(&dcnv4));
  library.impl("dcnv4_backward", TORCH_BOX(&dcnv4_backward));
}

}  // namespace
}  // namespace danet
