// The values of a program, and of the operators that programs call: images and matrices on the CPU.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "../common/tensor.h"
#include "arena.h"

namespace danet {

// A torch tensor, or an array in the memory of an arena. Creating a tensor costs about a microsecond, as much as some
// layers of a small network on a small image. The member functions are those of Tensor.
class Activation {
 public:
  // NOTE: not explicit, so that the operators can be called with tensors.
  Activation(const Tensor& tensor)
      : data_(const_cast<void*>(tensor.const_data_ptr())), dim_(tensor.dim()), type_(tensor.scalar_type()),
        is_cpu_(tensor.is_cpu()), tensor_(tensor) {
    // The operators check `dim` before they use the sizes.
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    for (int64_t i = 0; i < std::min(dim_, kMaxDims); ++i) sizes_[i] = sizes[i], strides_[i] = strides[i];
  }
  Activation(Arena::Block block, IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType type)
      : data_(block.get()), dim_(int64_t(sizes.size())), type_(type), is_cpu_(true), block_(std::move(block)) {
    std::copy(sizes.begin(), sizes.end(), sizes_.begin());
    std::copy(strides.begin(), strides.end(), strides_.begin());
  }

  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  IntHeaderOnlyArrayRef sizes() const { return {sizes_.data(), size_t(std::min(dim_, kMaxDims))}; }
  IntHeaderOnlyArrayRef strides() const { return {strides_.data(), size_t(std::min(dim_, kMaxDims))}; }
  ScalarType scalar_type() const { return type_; }
  bool is_cpu() const { return is_cpu_; }
  const void* const_data_ptr() const { return data_; }
  void* mutable_data_ptr() const { return data_; }

  // The tensor. For an array in an arena, the tensor is valid only as long as this activation.
  Tensor as_tensor() const {
    if (tensor_) return *tensor_;
    return torch::stable::from_blob(
        data_, sizes(), strides(), torch::stable::Device(torch::headeronly::DeviceType::CPU), type_);
  }
  // A tensor that owns its memory: the tensor, or a copy of the array.
  Tensor to_tensor() const { return tensor_ ? *tensor_ : torch::stable::clone(as_tensor()); }

  // The channels [first, first + count) of an image, which share its memory.
  Activation channels(int64_t first, int64_t count) const {
    DANET_CHECK(
        dim_ >= 2 && first >= 0 && count >= 0 && first <= sizes_[1] && count <= sizes_[1] - first,
        "run_program: a value does not have ", count, " channels from channel ", first, " on");
    Activation part = *this;
    if (part.tensor_) return torch::stable::narrow(*part.tensor_, 1, first, count);
    part.data_ = static_cast<char*>(data_) + first * strides_[1] * element_size(type_);
    part.sizes_[1] = count;
    return part;
  }

  // Makes an array that is an image with a border above and to the left of it into the image [N, C, H, W].
  void remove_border(int64_t H, int64_t W) {
    sizes_[2] = H, sizes_[3] = W;
    data_ = static_cast<char*>(data_) + (strides_[2] + strides_[3]) * element_size(type_);
    has_border = true;
  }

  static int64_t element_size(ScalarType type) {
    switch (type) {
      case ScalarType::Double: return 8;
      case ScalarType::Float: return 4;
      case ScalarType::Int: return 4;
      default: return 2;
    }
  }

  // A border of zeros surrounds the image in memory, as TileImage in rep_conv.h describes it, so that a 3x3 convolution
  // on the matrix unit reads it without a copy.
  bool has_border = false;

 private:
  static constexpr int64_t kMaxDims = 4;

  friend Activation to_channels_last(const Activation& image);

  void* data_;
  int64_t dim_;
  std::array<int64_t, kMaxDims> sizes_{}, strides_{};
  ScalarType type_;
  bool is_cpu_;
  std::optional<Tensor> tensor_;  // set if the value is a torch tensor
  Arena::Block block_;            // set if the value is in an arena
};

using ActivationImage = ImageOf<Activation>;
inline Activation to_channels_last(const Activation& image) {
  Activation copy(to_channels_last(image.as_tensor()));
  copy.block_ = image.block_;  // torch returns the same memory if the layout already fits, as for an empty image
  return copy;
}

// Where an operator gets memory: from the arena of a program, or from torch.
struct ActivationMemory {
  Arena* arena = nullptr;  // null: torch
  // Whether the result is one of the program, which must be an ordinary tensor.
  bool is_output = false;

  // Uninitialized memory for the result: an image [N, C, H, W] in channels-last layout, or a matrix.
  Activation result(IntHeaderOnlyArrayRef sizes, ScalarType type) const {
    return empty(is_output ? nullptr : arena, sizes, type);
  }
  // For an array that the operator needs until its end.
  Activation temporary(IntHeaderOnlyArrayRef sizes, ScalarType type) const { return empty(arena, sizes, type); }

 private:
  static Activation empty(Arena* arena, IntHeaderOnlyArrayRef sizes, ScalarType type) {
    const bool is_image = sizes.size() == 4;
    if (arena == nullptr) {
      const auto layout = is_image ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
      return torch::stable::empty(sizes, type, std::nullopt, std::nullopt, std::nullopt, layout);
    }
    // Compute the strides: the last dimension is the innermost one, but in an image the channels are.
    constexpr size_t kImageOrder[] = {1, 3, 2, 0};
    std::array<int64_t, 4> strides{};
    int64_t count = 1;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const size_t dimension = is_image ? kImageOrder[i] : sizes.size() - 1 - i;
      strides[dimension] = count;
      DANET_CHECK(!__builtin_mul_overflow(count, sizes[dimension], &count), "run_program: a value is too large");
    }
    DANET_CHECK(count <= int64_t(1) << 56, "run_program: a value is too large");
    return Activation(
        arena->allocate(count * Activation::element_size(type)), sizes, {strides.data(), sizes.size()}, type);
  }
};

}  // namespace danet
