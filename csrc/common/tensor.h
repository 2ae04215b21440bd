// Argument checks and channels-last views, which the torch operators share on the CPU and on CUDA devices.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "kernels.h"

namespace danet {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws if the condition is false. These checks guarantee memory safety for direct callers of torch.ops.danet; users
// of danet.ops get more detailed messages from the Python checkers. Unlike STD_TORCH_CHECK, the message names no source
// file.
#define DANET_CHECK(condition, ...) \
  if (!(condition)) throw std::runtime_error(torch::headeronly::detail::stdTorchCheckMsgImpl("", __VA_ARGS__))

// NOTE: the checks are templates, because on the CPU they also check activations (csrc/program/activation.h), which
// have the same members as tensors.
template <typename T>
DType dtype_of(const T& t) {
  ScalarType type = t.scalar_type();
  DANET_CHECK(
      type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::Half ||
          type == ScalarType::BFloat16,
      "danet: dtype must be float64, float32, float16 or bfloat16");
  return DType(int8_t(type));
}

// Whether the tensor is on the device that this source file is compiled for (CUDA under nvcc, else CPU).
template <typename T>
bool is_here(const T& t) {
#if defined(__CUDACC__)
  return t.is_cuda();
#else
  return t.is_cpu();
#endif
}

// Whether t is on the same device as input. The CPU is one device, although its index may be 0 or -1.
template <typename T, typename U>
bool is_on_device_of(const T& t, [[maybe_unused]] const U& input) {
#if defined(__CUDACC__)
  return is_here(t) && t.get_device_index() == input.get_device_index();
#else
  return is_here(t);
#endif
}

template <typename T>
void check_input(const char* op, const T& input) {
  DANET_CHECK(is_here(input) && input.dim() == 4, op, ": input must be [N, C, H, W] on the operator's device");
  dtype_of(input);
}

// Checks that t is on input's device and has input's dtype and the given sizes.
template <typename T, typename U>
void check_like(const char* op, const char* name, const T& t, const U& input, IntHeaderOnlyArrayRef sizes) {
  DANET_CHECK(is_on_device_of(t, input), op, ": ", name, " must be on input's device");
  DANET_CHECK(t.scalar_type() == input.scalar_type(), op, ": ", name, " must have input's dtype");
  DANET_CHECK(
      t.dim() == int64_t(sizes.size()) && std::equal(sizes.begin(), sizes.end(), t.sizes().begin()), op, ": ", name,
      " has the wrong shape");
}

inline Tensor to_channels_last(const Tensor& t) { return torch::stable::contiguous(t, MemoryFormat::ChannelsLast); }

// An [N, C, H, W] tensor in channels-last layout, and a view of it. Copies the tensor only if it does not have that
// layout; slices of channels or images of a channels-last tensor are not copied.
template <typename T>  // Tensor or Activation
struct ImageOf {
  T tensor;
  ImageView view;

  explicit ImageOf(const T& t) : tensor(t) {
    if (!strides_fit()) {
      tensor = to_channels_last(t);
      strides_fit();
    }
    view.data = const_cast<void*>(tensor.const_data_ptr());
  }

 private:
  // Sets the view's strides; returns whether the layout is channels-last. The stride of a dimension of size 1 is
  // ignored.
  bool strides_fit() {
    auto sizes = tensor.sizes(), strides = tensor.strides();
    view.image_stride = sizes[0] == 1 ? 0 : strides[0];
    view.pixel_stride = sizes[3] > 1 ? strides[3] : sizes[2] > 1 ? strides[2] : sizes[1];
    return (sizes[1] == 1 || strides[1] == 1) &&
           (sizes[2] == 1 || sizes[3] == 1 || strides[2] == sizes[3] * strides[3]);
  }
};
using Image = ImageOf<Tensor>;

inline Tensor empty_image(const Tensor& like, IntHeaderOnlyArrayRef sizes) {
  return torch::stable::empty(
      sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

}  // namespace danet
